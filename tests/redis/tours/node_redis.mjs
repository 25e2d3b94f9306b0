// A tour of what node-redis offers for strings and keys.
//
//   node_redis.mjs single HOST PORT     the plain client with RESP2 and RESP3, pipelines, transactions
//   node_redis.mjs cluster HOST PORT    the cluster client, from one node of a cluster
//   node_redis.mjs moving HOST PORT     the same while slots move, until standard input ends
//   node_redis.mjs soak HOST PORT S     a mix of commands for S seconds
//
// The store is emptied. Ends with 0 if all is as it should be, and says what is not.

import { expect, expectError, expectThat, installed, moving, run, soak } from './check.mjs';

const { RESP_TYPES, WatchError, createClient, createCluster } = installed('redis');

async function connected(host, port, options) {
  const client = createClient({ socket: { host, port, reconnectStrategy: false }, ...options });
  client.on('error', (error) => { throw error; });
  await client.connect();
  return client;
}

async function strings(r) {
  expect('SET', await r.set('k', 'v'), 'OK');
  expect('GET', await r.get('k'), 'v');
  expect('GET of nothing', await r.get('nothing'), null);
  expect('SET NX', await r.set('k', 'w', { condition: 'NX' }), null);
  expect('SET XX', await r.set('k', 'w', { condition: 'XX' }), 'OK');
  expect('SET GET', await r.set('k', 'x', { GET: true }), 'w');
  expect('SET EX', await r.set('k', 'v', { expiration: { type: 'EX', value: 1000 } }), 'OK');
  expect('SET KEEPTTL', await r.set('k', 'v', { expiration: 'KEEPTTL' }), 'OK');
  expectThat('TTL was kept', (await r.ttl('k')) > 900);
  expect('SET EXAT', await r.set('k', 'v', { expiration: { type: 'EXAT', value: 4102444800 } }), 'OK');
  expect('EXPIRETIME', await r.expireTime('k'), 4102444800);
  expect('SET PXAT', await r.set('k', 'v', { expiration: { type: 'PXAT', value: 4102444800123 } }), 'OK');
  expect('PEXPIRETIME', await r.pExpireTime('k'), 4102444800123);
  expect('SETNX', await r.setNX('k', 'v'), 0);
  expect('SETEX', await r.setEx('k', 1000, 'v'), 'OK');
  expect('PSETEX', await r.pSetEx('k', 1000000, 'v'), 'OK');
  expect('GETSET', await r.getSet('k', 'w'), 'v');
  expect('GETEX EX', await r.getEx('k', { type: 'EX', value: 100 }), 'w');
  expect('GETEX PERSIST', await r.getEx('k', { type: 'PERSIST' }), 'w');
  expect('GETDEL', await r.getDel('k'), 'w');
  const bytes = Buffer.from(Array.from({ length: 256 }, (_, index) => index));
  const key = Buffer.from([0, 255, 13, 10]);
  expect('SET of bytes', await r.set(key, bytes), 'OK');
  expect('GET of bytes', await r.withTypeMapping({ [RESP_TYPES.BLOB_STRING]: Buffer }).get(key), bytes);
  const large = 'x'.repeat(1000000);
  expect('SET of much', await r.set('large', large), 'OK');
  expectThat('GET of much', (await r.get('large')) === large);
  expect('MSET', await r.mSet({ '{t}a': '1', '{t}b': '2' }), 'OK');
  expect('MGET', await r.mGet(['{t}a', '{t}b', '{t}c']), ['1', '2', null]);
  expect('MSETNX', await r.mSetNX({ '{t}b': '3', '{t}d': '4' }), 0);
  expect('APPEND', await r.append('{t}a', '23'), 3);
  expect('STRLEN', await r.strLen('{t}a'), 3);
  expect('GETRANGE', await r.getRange('{t}a', 1, -1), '23');
  expect('SETRANGE', await r.setRange('{t}a', 4, 'x'), 5);
  await r.del('n');
  expect('INCR', await r.incr('n'), 1);
  expect('INCRBY', await r.incrBy('n', 41), 42);
  expect('DECR', await r.decr('n'), 41);
  expect('DECRBY', await r.decrBy('n', 40), 1);
  expect('INCRBYFLOAT', await r.incrByFloat('n', 0.5), '1.5');
  await expectError('INCR of a float', 'value is not an integer or out of range', () => r.incr('n'));
  await r.mSet({ '{t}x': 'ohmytext', '{t}y': 'mynewtext' });
  expect('LCS', await r.lcs('{t}x', '{t}y'), 'mytext');
  expect('LCS LEN', await r.lcsLen('{t}x', '{t}y'), 6);
  expect('LCS IDX', (await r.lcsIdx('{t}x', '{t}y')).len, 6);
  await r.del('bits');
  expect('SETBIT', await r.setBit('bits', 7, 1), 0);
  expect('GETBIT', await r.getBit('bits', 7), 1);
  expect('BITCOUNT', await r.bitCount('bits'), 1);
  expect('BITCOUNT BIT', await r.bitCount('bits', { start: 0, end: 6, mode: 'BIT' }), 0);
  expect('BITPOS', await r.bitPos('bits', 1), 7);
}

async function keys(r) {
  await r.set('{t}k', 'v');
  expect('EXISTS', await r.exists(['{t}k', '{t}k', '{t}nothing']), 2);
  expect('TYPE', await r.type('{t}k'), 'string');
  expect('TOUCH', await r.touch('{t}k'), 1);
  expect('EXPIRE', await r.expire('{t}k', 1000), 1);
  expect('EXPIRE NX', await r.expire('{t}k', 1000, 'NX'), 0);
  expect('PEXPIRE XX', await r.pExpire('{t}k', 1000000, 'XX'), 1);
  expectThat('PTTL', (await r.pTTL('{t}k')) > 900000);
  expect('EXPIREAT', await r.expireAt('{t}k', 4102444800), 1);
  expect('PEXPIREAT', await r.pExpireAt('{t}k', 4102444800000), 1);
  expect('PERSIST', await r.persist('{t}k'), 1);
  expect('TTL', await r.ttl('{t}k'), -1);
  await r.del(['{t}copy', '{t}named']);
  expect('COPY', await r.copy('{t}k', '{t}copy'), 1);
  expect('COPY REPLACE', await r.copy('{t}k', '{t}copy', { REPLACE: true }), 1);
  expect('RENAME', await r.rename('{t}copy', '{t}named'), 'OK');
  expect('RENAMENX', await r.renameNX('{t}named', '{t}k'), 0);
  await expectError('RENAME of nothing', 'no such key', () => r.rename('{t}nothing', '{t}k'));
  expect('UNLINK', await r.unlink('{t}named'), 1);
  expect('DEL', await r.del(['{t}k', '{t}nothing']), 1);
}

async function scans(r) {
  expect('FLUSHALL', await r.flushAll(), 'OK');
  expect('MSET over slots', await r.mSet(Array.from({ length: 1000 }, (_, i) => [`key:${i}`, `${i}`])), 'OK');
  const found = new Set();
  for await (const page of r.scanIterator({ MATCH: 'key:*', COUNT: 50 })) page.forEach((key) => found.add(key));
  expect('SCAN', found.size, 1000);
  expect('KEYS', (await r.keys('key:99?')).length, 10);
  expect('DBSIZE', await r.dbSize(), 1000);
  expectThat('RANDOMKEY', (await r.randomKey()).startsWith('key:'));
  expect('FLUSHDB', await r.flushDb(), 'OK');
}

async function server(r) {
  expect('PING', await r.ping(), 'PONG');
  expect('ECHO', await r.echo('hello'), 'hello');
  expectThat('CLIENT ID', (await r.clientId()) > 0);
  expect('CLIENT SETNAME', await r.clientSetName('tour'), 'OK');
  expect('CLIENT GETNAME', await r.clientGetName(), 'tour');
  expect('CLIENT INFO', (await r.clientInfo()).name, 'tour');
  expectThat('CLIENT LIST', (await r.clientList()).some((client) => client.name === 'tour'));
  expectThat('INFO', (await r.info()).includes('loading:0'));
  expectThat('CONFIG GET', 'maxmemory' in (await r.configGet('maxmemory')));
  expectThat('COMMAND COUNT', (await r.commandCount()) > 50);
  expect('COMMAND GETKEYS', await r.commandGetKeys(['GET', 'a']), ['a']);
  expect('COMMAND INFO', (await r.commandInfo(['get']))[0].firstKeyIndex, 1);
  expectThat('TIME', (await r.time()) !== null);
  expectThat('LASTSAVE', (await r.lastSave()) > 0);
  await r.set('counted', '1');
  expect('OBJECT', await r.objectEncoding('counted'), 'int');
  expectThat('MEMORY USAGE', (await r.memoryUsage('counted')) > 0);
  expect('WAIT', await r.wait(0, 10), 0);
  await expectError('an unknown command', 'unknown command', () => r.sendCommand(['NOTHING', 'a']));
  await expectError('an unknown subcommand', 'nknown subcommand', () => r.sendCommand(['CLIENT', 'NOTHING']));
  await expectError('too few arguments', 'wrong number of arguments', () => r.sendCommand(['GET']));
}

async function transactions(r) {
  await r.del(['{t}n', '{t}m']);
  expect('MULTI', await r.multi().incr('{t}n').append('{t}m', 'x').get('{t}n').exec(), [1, 1, '1']);
  expect('a pipeline', await r.multi().set('one', '1').get('one').execAsPipeline(), ['OK', '1']);
  await r.watch('{t}n');
  await r.sendCommand(['SET', '{t}n', '7']);
  let noticed = false;
  await r.multi().set('{t}n', '8').exec().catch((error) => { noticed = error instanceof WatchError; });
  expectThat('WATCH', noticed);
  await r.watch('{t}n');
  expect('UNWATCH', await r.unwatch(), 'OK');
  const many = Array.from({ length: 3000 }, (_, index) => `${index}`);
  await Promise.all(many.map((index) => r.set(`p:${index}`, index)));
  expect('many at once', await Promise.all(many.map((index) => r.get(`p:${index}`))), many);
}

async function single(host, port) {
  for (const RESP of [2, 3]) {
    const r = await connected(host, port, { RESP, name: 'tour' });
    for (const tour of [scans, strings, keys, server, transactions]) await tour(r);
    r.destroy();
  }
}

async function connectedCluster(host, port, options) {
  const r = createCluster({ rootNodes: [{ socket: { host, port } }], ...options });
  r.on('error', (error) => { throw error; });
  await r.connect();
  return r;
}

async function cluster(host, port) {
  for (const RESP of [2, 3]) {
    const r = await connectedCluster(host, port, { RESP });
    expectThat('it has several nodes', r.masters.length > 1);
    const nodes = await Promise.all(r.masters.map((node) => r.nodeClient(node)));
    for (const node of nodes) await node.flushAll();
    await strings(r);
    await keys(r);
    const many = Array.from({ length: 2000 }, (_, index) => `${index}`);
    await Promise.all(many.map((index) => r.set(`key:${index}`, index)));
    expect('every key', await Promise.all(many.map((index) => r.get(`key:${index}`))), many);
    const sizes = await Promise.all(nodes.map((node) => node.dbSize()));
    expectThat('each node has some', sizes.every((size) => size > 100));
    for (let i = 0; i < 300; i += 1) {
      const [one, other] = [`{tag${i}}one`, `{tag${i}}other`];
      expect('MSET of a tag', await r.mSet([one, `${i}`, other, `${-i}`]), 'OK');
      expect('MGET of a tag', await r.mGet([one, `{tag${i}}none`, other]), [`${i}`, null, `${-i}`]);
      const pipeline = r.multi().incr(one).get(other).del([one, other]);
      expect('a pipeline of a tag', await pipeline.execAsPipeline(), [i + 1, `${-i}`, 2]);
    }
    expect('MULTI', await r.multi().set('{m}a', '1').incr('{m}a').exec(), ['OK', 2]);
    await expectError('keys of several slots', 'CROSSSLOT', () => r.mSetNX({ '{a}1': '1', '{b}1': '2' }));
    r.destroy();
  }
}

await run('node-redis', {
  single,
  cluster,
  async moving(host, port) {
    await moving(await connectedCluster(host, port, {}));
  },
  async soak(host, port, seconds) {
    const r = await connected(host, port, {});
    await soak((...words) => r.sendCommand(words), seconds);
  },
});
