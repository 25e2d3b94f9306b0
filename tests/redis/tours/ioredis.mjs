// A tour of what ioredis offers for strings and keys.
//
//   ioredis.mjs single HOST PORT     the plain client, pipelines, transactions
//   ioredis.mjs cluster HOST PORT    the cluster client, from one node of a cluster
//   ioredis.mjs moving HOST PORT     the same while slots move, until standard input ends
//   ioredis.mjs soak HOST PORT S     a mix of commands for S seconds
//
// The store is emptied. Ends with 0 if all is as it should be, and says what is not.

import { expect, expectError, expectThat, installed, moving, run, soak } from './check.mjs';

const { Redis, Cluster } = installed('ioredis');

// A failure ends the tour rather than being tried again for ever.
const once = { retryStrategy: null, maxRetriesPerRequest: 0 };

async function connected(options) {
  const redis = new Redis({ ...once, ...options });
  redis.on('error', (error) => { throw error; });
  await new Promise((resolve) => redis.once('ready', resolve));
  return redis;
}

async function strings(r) {
  expect('SET', await r.set('k', 'v'), 'OK');
  expect('GET', await r.get('k'), 'v');
  expect('GET of nothing', await r.get('nothing'), null);
  expect('SET NX', await r.set('k', 'w', 'NX'), null);
  expect('SET XX', await r.set('k', 'w', 'XX'), 'OK');
  expect('SET GET', await r.set('k', 'x', 'GET'), 'w');
  expect('SET EX', await r.set('k', 'v', 'EX', 1000), 'OK');
  expect('SET KEEPTTL', await r.set('k', 'v', 'KEEPTTL'), 'OK');
  expectThat('TTL was kept', (await r.ttl('k')) > 900);
  expect('SET PX NX', await r.set('k', 'v', 'PX', 1000000, 'NX'), null);
  expect('SET EXAT', await r.set('k', 'v', 'EXAT', 4102444800), 'OK');
  expect('EXPIRETIME', await r.expiretime('k'), 4102444800);
  expect('SET PXAT', await r.set('k', 'v', 'PXAT', 4102444800123), 'OK');
  expect('PEXPIRETIME', await r.pexpiretime('k'), 4102444800123);
  expect('SETNX', await r.setnx('k', 'v'), 0);
  expect('SETEX', await r.setex('k', 1000, 'v'), 'OK');
  expect('PSETEX', await r.psetex('k', 1000000, 'v'), 'OK');
  expect('GETSET', await r.getset('k', 'w'), 'v');
  expect('GETEX EX', await r.getex('k', 'EX', 100), 'w');
  expect('GETEX PERSIST', await r.getex('k', 'PERSIST'), 'w');
  expect('GETDEL', await r.getdel('k'), 'w');
  const bytes = Buffer.from(Array.from({ length: 256 }, (_, index) => index));
  expect('SET of bytes', await r.set(Buffer.from([0, 255, 13, 10]), bytes), 'OK');
  expect('GET of bytes', await r.getBuffer(Buffer.from([0, 255, 13, 10])), bytes);
  const large = Buffer.alloc(1000000, 'x');
  expect('SET of much', await r.set('large', large), 'OK');
  expectThat('GET of much', large.equals(await r.getBuffer('large')));
  expect('MSET', await r.mset('{t}a', '1', '{t}b', '2'), 'OK');
  expect('MSET of an object', await r.mset({ '{t}a': '1', '{t}b': '2' }), 'OK');
  expect('MGET', await r.mget('{t}a', '{t}b', '{t}c'), ['1', '2', null]);
  expect('MSETNX', await r.msetnx('{t}b', '3', '{t}d', '4'), 0);
  expect('APPEND', await r.append('{t}a', '23'), 3);
  expect('STRLEN', await r.strlen('{t}a'), 3);
  expect('GETRANGE', await r.getrange('{t}a', 1, -1), '23');
  expect('SUBSTR', await r.substr('{t}a', 0, 1), '12');
  expect('SETRANGE', await r.setrange('{t}a', 4, 'x'), 5);
  await r.del('n');
  expect('INCR', await r.incr('n'), 1);
  expect('INCRBY', await r.incrby('n', 41), 42);
  expect('DECR', await r.decr('n'), 41);
  expect('DECRBY', await r.decrby('n', 40), 1);
  expect('INCRBYFLOAT', await r.incrbyfloat('n', 0.5), '1.5');
  await expectError('INCR of a float', 'value is not an integer or out of range', () => r.incr('n'));
  await r.mset('{t}x', 'ohmytext', '{t}y', 'mynewtext');
  expect('LCS', await r.lcs('{t}x', '{t}y'), 'mytext');
  expect('LCS LEN', await r.lcs('{t}x', '{t}y', 'LEN'), 6);
  await r.del('bits');
  expect('SETBIT', await r.setbit('bits', 7, 1), 0);
  expect('GETBIT', await r.getbit('bits', 7), 1);
  expect('BITCOUNT', await r.bitcount('bits'), 1);
  expect('BITCOUNT BIT', await r.bitcount('bits', 0, 6, 'BIT'), 0);
  expect('BITPOS', await r.bitpos('bits', 1), 7);
}

async function keys(r) {
  await r.set('{t}k', 'v');
  expect('EXISTS', await r.exists('{t}k', '{t}k', '{t}nothing'), 2);
  expect('TYPE', await r.type('{t}k'), 'string');
  expect('TOUCH', await r.touch('{t}k'), 1);
  expect('EXPIRE', await r.expire('{t}k', 1000), 1);
  expect('EXPIRE NX', await r.expire('{t}k', 1000, 'NX'), 0);
  expect('PEXPIRE XX', await r.pexpire('{t}k', 1000000, 'XX'), 1);
  expectThat('PTTL', (await r.pttl('{t}k')) > 900000);
  expect('EXPIREAT', await r.expireat('{t}k', 4102444800), 1);
  expect('PEXPIREAT', await r.pexpireat('{t}k', 4102444800000), 1);
  expect('PERSIST', await r.persist('{t}k'), 1);
  expect('TTL', await r.ttl('{t}k'), -1);
  await r.del('{t}copy', '{t}named');
  expect('COPY', await r.copy('{t}k', '{t}copy'), 1);
  expect('COPY REPLACE', await r.copy('{t}k', '{t}copy', 'REPLACE'), 1);
  expect('RENAME', await r.rename('{t}copy', '{t}named'), 'OK');
  expect('RENAMENX', await r.renamenx('{t}named', '{t}k'), 0);
  await expectError('RENAME of nothing', 'no such key', () => r.rename('{t}nothing', '{t}k'));
  expect('UNLINK', await r.unlink('{t}named'), 1);
  expect('DEL', await r.del('{t}k', '{t}nothing'), 1);
}

async function scans(r) {
  expect('FLUSHALL', await r.flushall(), 'OK');
  expect('MSET over slots', await r.mset(Object.fromEntries(Array.from({ length: 1000 }, (_, i) => [`key:${i}`, i]))), 'OK');
  const found = new Set();
  for await (const page of r.scanStream({ match: 'key:*', count: 50 })) page.forEach((key) => found.add(key));
  expect('SCAN', found.size, 1000);
  expect('KEYS', (await r.keys('key:99?')).length, 10);
  expect('DBSIZE', await r.dbsize(), 1000);
  expectThat('RANDOMKEY', (await r.randomkey()).startsWith('key:'));
  expect('FLUSHDB', await r.flushdb(), 'OK');
}

async function server(r) {
  expect('PING', await r.ping(), 'PONG');
  expect('ECHO', await r.echo('hello'), 'hello');
  expectThat('CLIENT ID', (await r.client('ID')) > 0);
  expect('CLIENT SETNAME', await r.client('SETNAME', 'tour'), 'OK');
  expect('CLIENT GETNAME', await r.client('GETNAME'), 'tour');
  expectThat('CLIENT LIST', (await r.client('LIST')).includes('name=tour'));
  expectThat('INFO', (await r.info()).includes('loading:0'));
  expect('CONFIG GET', (await r.config('GET', 'maxmemory'))[0], 'maxmemory');
  expectThat('COMMAND COUNT', (await r.command('COUNT')) > 50);
  expect('COMMAND GETKEYS', await r.command('GETKEYS', 'GET', 'a'), ['a']);
  expect('TIME', (await r.time()).length, 2);
  expectThat('LASTSAVE', (await r.lastsave()) > 0);
  expectThat('SLOWLOG', (await r.slowlog('LEN')) >= 0);
  await r.set('counted', 1);
  expect('OBJECT', await r.object('ENCODING', 'counted'), 'int');
  expectThat('MEMORY USAGE', (await r.memory('USAGE', 'counted')) > 0);
  expect('WAIT', await r.wait(0, 10), 0);
  await expectError('an unknown command', 'unknown command', () => r.call('NOTHING', 'a'));
  await expectError('an unknown subcommand', 'nknown subcommand', () => r.client('NOTHING'));
  await expectError('too few arguments', 'wrong number of arguments', () => r.call('GET'));
}

async function transactions(r) {
  expect('a pipeline', await r.pipeline().set('one', 1).get('one').mget('one', 'two').exec(), [
    [null, 'OK'], [null, '1'], [null, ['1', null]],
  ]);
  await r.del('{t}n', '{t}m');
  expect('MULTI', await r.multi().incr('{t}n').append('{t}m', 'x').get('{t}n').exec(), [
    [null, 1], [null, 1], [null, '1'],
  ]);
  await r.multi({ pipeline: false });
  expect('queued', await r.incr('{t}n'), 'QUEUED');
  expect('EXEC', await r.exec(), [[null, 2]]);
  await r.watch('{t}n');
  await r.set('{t}n', 7);
  expect('WATCH', await r.multi().set('{t}n', 8).exec(), null);
  await r.watch('{t}n');
  expect('UNWATCH', await r.unwatch(), 'OK');
  const mixed = await r.multi().set('{t}m', 'x').incr('{t}m').set('{t}n', 9).exec();
  expectThat('a wrong command among others', mixed[1][0].message.includes('not an integer'));
  const many = Array.from({ length: 3000 }, (_, index) => index);
  await Promise.all(many.map((index) => r.set(`p:${index}`, index)));
  expect('many at once', await Promise.all(many.map((index) => r.get(`p:${index}`))), many.map(String));
}

async function single(host, port) {
  const r = await connected({ host, port, connectionName: 'tour' });
  for (const tour of [scans, strings, keys, server, transactions]) await tour(r);
  r.disconnect();
  const pipelining = await connected({ host, port, enableAutoPipelining: true });
  await Promise.all([pipelining.set('a', 1), pipelining.set('b', 2)]);
  expect('auto-pipelining', await Promise.all([pipelining.get('a'), pipelining.get('b')]), ['1', '2']);
  pipelining.disconnect();
}

async function connectedCluster(host, port) {
  const r = new Cluster([{ host, port }], { clusterRetryStrategy: null, redisOptions: once });
  r.on('error', (error) => { throw error; });
  await new Promise((resolve) => r.once('ready', resolve));
  return r;
}

async function cluster(host, port) {
  const r = await connectedCluster(host, port);
  expectThat('it has several nodes', r.nodes('master').length > 1);
  for (const node of r.nodes('master')) await node.flushall();
  await strings(r);
  await keys(r);
  const many = Array.from({ length: 2000 }, (_, index) => index);
  await Promise.all(many.map((index) => r.set(`key:${index}`, index)));
  expect('every key', await Promise.all(many.map((index) => r.get(`key:${index}`))), many.map(String));
  const sizes = await Promise.all(r.nodes('master').map((node) => node.dbsize()));
  expectThat('each node has some', sizes.every((size) => size > 100));
  for (let i = 0; i < 300; i += 1) {
    const [one, other] = [`{tag${i}}one`, `{tag${i}}other`];
    expect('MSET of a tag', await r.mset(one, i, other, -i), 'OK');
    expect('MGET of a tag', await r.mget(one, `{tag${i}}none`, other), [`${i}`, null, `${-i}`]);
    expect('a pipeline of a tag', await r.pipeline().incr(one).get(other).del(one, other).exec(), [
      [null, i + 1], [null, `${-i}`], [null, 2],
    ]);
  }
  expect('MULTI', await r.multi().set('{m}a', 1).incr('{m}a').exec(), [[null, 'OK'], [null, 2]]);
  await expectError('keys of several slots', 'CROSSSLOT', () => r.msetnx('{a}1', '1', '{b}1', '2'));
  expect('CLUSTER KEYSLOT', await r.cluster('KEYSLOT', 'foo'), 12182);
  expectThat('CLUSTER INFO', (await r.cluster('INFO')).includes('cluster_state:ok'));
  r.disconnect();
}

await run('ioredis', {
  single,
  cluster,
  async moving(host, port) {
    await moving(await connectedCluster(host, port));
  },
  async soak(host, port, seconds) {
    const r = await connected({ host, port });
    await soak((...words) => r.call(...words), seconds);
  },
});
