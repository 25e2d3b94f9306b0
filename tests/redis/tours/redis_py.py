"""A tour of what redis-py offers for strings and keys.

    redis_py.py single HOST PORT     the plain client with RESP2 and RESP3, pipelines, transactions
    redis_py.py cluster HOST PORT    the cluster client, from one node of a cluster
    redis_py.py moving HOST PORT     the same while slots move, until standard input ends
    redis_py.py soak HOST PORT S     a mix of commands for S seconds

The store is emptied. Ends with 0 if all is as it should be, and says what is not.
"""

import random
import sys
import threading
import time
import warnings

import redis
from redis.cluster import RedisCluster

# Some commands are offered still, and advised against.
warnings.simplefilter("ignore", DeprecationWarning)

checks = 0


def expect(what, got, wanted):
    """One check."""
    global checks
    checks += 1
    if got != wanted:
        raise SystemExit(f"redis-py: {what}: {got!r}, not {wanted!r}")


def expect_that(what, holds):
    expect(what, bool(holds), True)


def expect_error(what, text, call):
    """A call that has to be refused with a text."""
    global checks
    checks += 1
    try:
        got = call()
    except redis.RedisError as error:
        if text not in str(error):
            raise SystemExit(f"redis-py: {what}: refused with {error}, not with {text}")
        return
    raise SystemExit(f"redis-py: {what}: {got!r}, not refused with {text}")


def text(got):
    """Some answers are bytes with one protocol and text with the other."""
    return got.decode() if isinstance(got, bytes) else got


def strings(r):
    expect("SET", r.set("k", "v"), True)
    expect("GET", r.get("k"), b"v")
    expect("GET of nothing", r.get("nothing"), None)
    expect("SET NX", r.set("k", "w", nx=True), None)
    expect("SET XX", r.set("k", "w", xx=True), True)
    expect("SET GET", r.set("k", "x", get=True), b"w")
    expect("SET EX", r.set("k", "v", ex=1000), True)
    expect("SET KEEPTTL", r.set("k", "v", keepttl=True), True)
    expect_that("TTL was kept", 900 < r.ttl("k") <= 1000)
    expect("SET PX", r.set("k", "v", px=1_000_000), True)
    expect("SET EXAT", r.set("k", "v", exat=4_102_444_800), True)
    expect("EXPIRETIME", r.expiretime("k"), 4_102_444_800)
    expect("SET PXAT", r.set("k", "v", pxat=4_102_444_800_123), True)
    expect("PEXPIRETIME", r.pexpiretime("k"), 4_102_444_800_123)
    expect("SETNX", r.setnx("k", "v"), False)
    expect("SETEX", r.setex("k", 1000, "v"), True)
    expect("PSETEX", r.psetex("k", 1_000_000, "v"), True)
    expect("GETSET", r.getset("k", "w"), b"v")
    expect("GETEX EX", r.getex("k", ex=100), b"w")
    expect("GETEX PERSIST", r.getex("k", persist=True), b"w")
    expect("TTL of what persists", r.ttl("k"), -1)
    expect("GETDEL", r.getdel("k"), b"w")
    expect("GETDEL of nothing", r.getdel("k"), None)
    expect("binary", (r.set(b"\x00\xff{t}\r\n", bytes(range(256))), r.get(b"\x00\xff{t}\r\n")), (True, bytes(range(256))))
    large = b"x" * 1_000_000
    expect("a large value", (r.set("large", large), r.get("large") == large), (True, True))
    expect("MSET", r.mset({"{t}a": "1", "{t}b": "2"}), True)
    expect("MGET", r.mget("{t}a", "{t}b", "{t}c"), [b"1", b"2", None])
    expect("MSETNX", r.msetnx({"{t}b": "3", "{t}d": "4"}), False)
    expect("APPEND", (r.append("{t}a", "23"), r.get("{t}a")), (3, b"123"))
    expect("STRLEN", r.strlen("{t}a"), 3)
    expect("GETRANGE", r.getrange("{t}a", 1, -1), b"23")
    expect("SUBSTR", r.substr("{t}a", 0, 1), b"12")
    expect("SETRANGE", (r.setrange("{t}a", 4, "x"), r.get("{t}a")), (5, b"123\0x"))
    expect("INCR", r.incr("n"), 1)
    expect("INCRBY", r.incrby("n", 41), 42)
    expect("DECR", r.decr("n"), 41)
    expect("DECRBY", r.decrby("n", 40), 1)
    expect("INCRBYFLOAT", r.incrbyfloat("n", 0.5), 1.5)
    expect_error("INCR of a float", "value is not an integer or out of range", lambda: r.incr("n"))
    r.mset({"{t}x": "ohmytext", "{t}y": "mynewtext"})
    expect("LCS", r.lcs("{t}x", "{t}y"), b"mytext")
    expect("LCS LEN", r.lcs("{t}x", "{t}y", len=True), 6)
    expect_that("LCS IDX", r.lcs("{t}x", "{t}y", idx=True, minmatchlen=4, withmatchlen=True))


def bits(r):
    expect("SETBIT", r.setbit("bits", 7, 1), 0)
    expect("GETBIT", r.getbit("bits", 7), 1)
    expect("BITCOUNT", r.bitcount("bits"), 1)
    expect("BITCOUNT BIT", r.bitcount("bits", 0, 6, "BIT"), 0)
    expect("BITPOS", r.bitpos("bits", 1), 7)
    expect("BITPOS with a range", r.bitpos("bits", 0, 0, -1), 0)
    expect_error("SETBIT of 2", "bit is not an integer or out of range", lambda: r.execute_command("SETBIT", "bits", 1, 2))


def keys(r, several=True):
    r.set("{t}k", "v")
    expect("EXISTS", r.exists("{t}k", "{t}k", "{t}nothing"), 2)
    expect("TYPE", r.type("{t}k"), b"string")
    expect("TYPE of nothing", r.type("nothing"), b"none")
    expect("TOUCH", r.touch("{t}k"), 1)
    expect("EXPIRE", r.expire("{t}k", 1000), True)
    expect("EXPIRE NX", r.expire("{t}k", 1000, nx=True), False)
    expect("EXPIRE GT", r.expire("{t}k", 2000, gt=True), True)
    expect("EXPIRE LT", r.expire("{t}k", 1500, lt=True), True)
    expect("PEXPIRE XX", r.pexpire("{t}k", 1_000_000, xx=True), True)
    expect_that("PTTL", 900_000 < r.pttl("{t}k") <= 1_000_000)
    expect("EXPIREAT", r.expireat("{t}k", 4_102_444_800), True)
    expect("PEXPIREAT", r.pexpireat("{t}k", 4_102_444_800_000), True)
    expect("PERSIST", r.persist("{t}k"), True)
    expect("PERSIST again", r.persist("{t}k"), False)
    expect("COPY", r.copy("{t}k", "{t}copy"), True)
    expect("COPY onto one", r.copy("{t}k", "{t}copy"), False)
    expect("COPY REPLACE", r.copy("{t}k", "{t}copy", replace=True), True)
    expect("RENAME", r.rename("{t}copy", "{t}named"), True)
    expect("RENAMENX", r.renamenx("{t}named", "{t}k"), False)
    expect_error("RENAME of nothing", "no such key", lambda: r.rename("{t}nothing", "{t}k"))
    expect("UNLINK", r.unlink("{t}named"), 1)
    expect("DEL", r.delete("{t}k", "{t}nothing"), 1)
    expect("EXPIRE of the past", (r.set("gone", "v"), r.expire("gone", -1), r.get("gone")), (True, True, None))
    if several:
        expect("FLUSHALL", r.flushall(), True)
        r.mset({f"key:{i}": i for i in range(500)})
        r.mset({f"other:{i}": i for i in range(500)})
        everything = {f"{kind}:{i}".encode() for kind in ("key", "other") for i in range(500)}
        expect("SCAN", set(r.scan_iter(count=50)), everything)
        expect("SCAN MATCH", len(set(r.scan_iter(match="key:1*", count=1000))), 111)
        expect("SCAN TYPE", len(set(r.scan_iter(_type="string"))), 1000)
        expect("SCAN TYPE of others", list(r.scan_iter(_type="list")), [])
        expect("KEYS", set(r.keys("key:*")), {key for key in everything if key.startswith(b"key")})
        expect("DBSIZE", r.dbsize(), 1000)
        expect_that("RANDOMKEY", r.randomkey() in everything)
        expect("DEL over slots", r.delete(*(f"key:{i}" for i in range(500))), 500)
        expect("EXISTS over slots", r.exists(*(f"other:{i}" for i in range(500))), 500)
        expect("FLUSHDB", r.flushdb(), True)
        expect("DBSIZE of nothing", r.dbsize(), 0)
        expect("RANDOMKEY of nothing", r.randomkey(), None)


def server(r):
    expect("PING", r.ping(), True)
    expect("ECHO", r.echo("hello"), b"hello")
    expect_that("CLIENT ID", r.client_id() > 0)
    expect("CLIENT SETNAME", r.client_setname("tour"), True)
    expect("CLIENT GETNAME", text(r.client_getname()), "tour")
    expect_that("CLIENT INFO", r.client_info()["name"] == "tour")
    expect_that("CLIENT LIST", any(client["name"] == "tour" for client in r.client_list()))
    expect("CLIENT NO-EVICT", r.client_no_evict("ON"), b"OK")
    info = r.info()
    for name in ("redis_version", "redis_mode", "role", "loading", "connected_clients", "used_memory", "cluster_enabled"):
        expect_that(f"INFO has {name}", name in info)
    expect("INFO loading", info["loading"], 0)
    expect_that("INFO of a section", "redis_version" in r.info("server"))
    r.set("counted", "1")
    expect_that("INFO keyspace", r.info("keyspace")["db0"]["keys"] >= 1)
    expect_that("CONFIG GET", "maxmemory" in r.config_get("maxmemory"))
    expect_that("CONFIG GET *", len(r.config_get("*")) > 5)
    expect("CONFIG RESETSTAT", r.config_resetstat(), True)
    expect_that("COMMAND COUNT", r.command_count() > 50)
    expect_that("COMMAND", "get" in r.command())
    expect("COMMAND GETKEYS", [text(key) for key in r.command_getkeys("MSET", "a", "1", "b", "2")], ["a", "b"])
    expect_that("TIME", abs(r.time()[0] - time.time()) < 60)
    expect_that("LASTSAVE", r.lastsave().year >= 2024)
    expect_that("SLOWLOG LEN", r.slowlog_len() >= 0)
    expect_that("SLOWLOG GET", isinstance(r.slowlog_get(5), list))
    expect("SLOWLOG RESET", r.slowlog_reset(), True)
    expect("LATENCY LATEST", r.latency_latest(), [])
    expect("OBJECT ENCODING", r.object("ENCODING", "counted"), b"int")
    expect_that("OBJECT REFCOUNT", r.object("REFCOUNT", "counted") >= 1)
    expect_that("OBJECT IDLETIME", r.object("IDLETIME", "counted") >= 0)
    expect_that("MEMORY USAGE", r.memory_usage("counted") > 0)
    expect("WAIT", r.wait(0, 10), 0)
    expect_error("an unknown command", "unknown command", lambda: r.execute_command("NOTHING", "a"))
    expect_error("an unknown subcommand", "unknown subcommand", lambda: r.execute_command("CLIENT NOTHING"))
    expect_error("too few arguments", "wrong number of arguments", lambda: r.execute_command("GET"))


def transactions(r):
    r.delete("{t}n", "{t}m")
    with r.pipeline(transaction=False) as pipe:
        pipe.set("one", 1).set("two", 2).get("one").mget("one", "two")
        expect("a pipeline", pipe.execute(), [True, True, b"1", [b"1", b"2"]])
    with r.pipeline() as pipe:
        pipe.incr("{t}n").incr("{t}n").append("{t}m", "x").get("{t}n")
        expect("MULTI", pipe.execute(), [1, 2, 1, b"2"])
    with r.pipeline() as pipe:
        pipe.watch("{t}n")
        value = int(pipe.get("{t}n"))
        pipe.multi()
        pipe.set("{t}n", value + 1)
        expect("WATCH of what stays", pipe.execute(), [True])
        pipe.watch("{t}n")
        r.set("{t}n", 7)
        pipe.multi()
        pipe.set("{t}n", 8)
        try:
            pipe.execute()
            raise SystemExit("redis-py: WATCH did not notice a change")
        except redis.WatchError:
            pass
        expect("after a WATCH that failed", r.get("{t}n"), b"7")
    with r.pipeline() as pipe:
        pipe.set("{t}m", "x").incr("{t}m").set("{t}n", 9)
        got = pipe.execute(raise_on_error=False)
        expect("a wrong command among others", (got[0], type(got[1]), got[2]), (True, redis.ResponseError, True))

    def count(pipe):
        value = int(pipe.get("{t}n"))
        pipe.multi()
        pipe.set("{t}n", value + 1).get("{t}n")

    expect("transaction()", r.transaction(count, "{t}n"), [True, b"10"])
    with r.pipeline(transaction=False) as pipe:
        for i in range(5000):
            pipe.set(f"p:{i}", i)
        for i in range(5000):
            pipe.get(f"p:{i}")
        got = pipe.execute()
    expect("a long pipeline", got[5000:], [str(i).encode() for i in range(5000)])


def single(host, port):
    for protocol in (None, 2, 3):
        given = {} if protocol is None else {"protocol": protocol}
        with redis.Redis(host=host, port=port, client_name="tour", **given) as r:
            r.flushall()
            strings(r)
            bits(r)
            keys(r)
            server(r)
            transactions(r)
    with redis.Redis(host=host, port=port, decode_responses=True) as r:
        expect("text", (r.set("k", "ä€"), r.get("k")), (True, "ä€"))
    expect_error("SELECT 1", "DB index is out of range", lambda: redis.Redis(host=host, port=port, db=1).ping())
    url = redis.from_url(f"redis://{host}:{port}/0?protocol=3")
    expect("from a URL", url.ping(), True)


def cluster(host, port):
    for protocol in (None, 2):
        given = {} if protocol is None else {"protocol": protocol}
        with RedisCluster(host=host, port=port, **given) as r:
            expect_that("it has several nodes", len(r.get_primaries()) > 1)
            for node in r.get_primaries():
                r.flushall(target_nodes=node)
            strings_of_slots(r)
            bits(r)
            keys(r, several=False)
            for i in range(2000):
                r.set(f"key:{i}", i)
            expect("every key is found again", all(r.get(f"key:{i}") == str(i).encode() for i in range(2000)), True)
            expect("MGET over slots", r.mget_nonatomic([f"key:{i}" for i in range(100)])[:3], [b"0", b"1", b"2"])
            expect("MSET over slots", all(r.mset_nonatomic({f"m:{i}": i for i in range(100)})), True)
            expect("KEYS of all nodes", len(r.keys("key:*", target_nodes=RedisCluster.PRIMARIES)), 2000)
            expect("SCAN of all nodes", len(set(r.scan_iter(match="key:*", count=500))), 2000)
            expect_that("DBSIZE of all nodes", r.dbsize(target_nodes=RedisCluster.PRIMARIES) >= 2000)
            with r.pipeline() as pipe:
                for i in range(500):
                    pipe.get(f"key:{i}")
                expect("a pipeline over nodes", pipe.execute(), [str(i).encode() for i in range(500)])
            for i in range(300):
                one, other = f"{{tag{i}}}one", f"{{tag{i}}}other"
                expect("MSET of a tag", r.mset({one: i, other: -i}), True)
                expect("MGET of a tag", r.mget(one, "{tag%d}none" % i, other), [b"%d" % i, None, b"%d" % -i])
                expect("DEL of a tag", r.delete(one, other), 2)
            with r.pipeline(transaction=True) as pipe:
                expect("MULTI of a tag", pipe.set("{m}a", 1).incr("{m}a").get("{m}a").execute(), [b"OK", 2, b"2"])
            expect_error("keys of several slots", "hash to the same slot", lambda: crossslot(r))
            expect("CLUSTER KEYSLOT", r.cluster_keyslot("foo"), 12182)
            expect("CLUSTER COUNTKEYSINSLOT", r.cluster_countkeysinslot(r.keyslot("key:1")) >= 1, True)
            expect("CLUSTER INFO", r.cluster_info(target_nodes=r.get_random_node())["cluster_state"], "ok")
            expect_that("CLUSTER MYID", len(r.cluster_myid(r.get_random_node())) == 40)


def crossslot(r):
    node = r.get_node_from_key("{a}1")
    return r.execute_command("MSETNX", "{a}1", "1", "{b}1", "2", target_nodes=node)


def strings_of_slots(r):
    """As `strings`, whose MSET and MGET are of one slot."""
    strings(r)
    r.set("{u}1", "x")
    expect("MGET of one slot", r.mget("{u}1", "{u}2"), [b"x", None])


def moving(host, port):
    with RedisCluster(host=host, port=port) as r:
        counts = [0] * 1000
        for i in range(len(counts)):
            r.set(f"move:{i}", 0)
        print("ready", flush=True)
        ended = threading.Event()
        threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
        while not ended.is_set():
            i = random.randrange(len(counts))
            counts[i] += 1
            expect("INCR", r.incr(f"move:{i}"), counts[i])
            j = random.randrange(len(counts))
            expect("GET", r.get(f"move:{j}"), b"%d" % counts[j])
        for i, count in enumerate(counts):
            expect("GET at the end", r.get(f"move:{i}"), b"%d" % count)


def soak(host, port, seconds):
    end = time.monotonic() + float(seconds)
    random.seed(1)
    # Keys of its own, since others are at it as well.
    mine = f"py{random.SystemRandom().randrange(1 << 32):08x}"
    r = redis.Redis(host=host, port=port)
    expected, count = {}, 0
    while time.monotonic() < end:
        key = f"{mine}:{random.randrange(2000)}"
        match random.randrange(8):
            case 0 | 1:
                expected[key] = random.randbytes(random.choice((0, 10, 100, 5000)))
                r.set(key, expected[key], ex=random.choice((None, 100_000)))
            case 2 | 3 | 4:
                expect(f"GET {key}", r.get(key), expected.get(key))
            case 5:
                expect(f"DEL {key}", r.delete(key), int(expected.pop(key, None) is not None))
            case 6:
                keys = [f"{mine}:{random.randrange(2000)}" for _ in range(10)]
                expect("MGET", r.mget(keys), [expected.get(key) for key in keys])
            case _:
                with r.pipeline() as pipe:
                    counter = f"{mine}:counter"
                    got = pipe.incr(counter).expire(counter, 10_000).get(counter).execute()
                    expect("a transaction", got[2], str(got[0]).encode())
        count += 1
    r.delete(*expected, f"{mine}:counter")
    print(f"redis-py: {count} rounds")


def main():
    tour, host, port, *rest = sys.argv[1:]
    {"single": single, "cluster": cluster, "moving": moving, "soak": soak}[tour](host, int(port), *rest)
    print(f"redis-py {redis.__version__}: {checks} checks")


main()
