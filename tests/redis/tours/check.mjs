// Checks of the tours, and the packages of the directory that they were installed into.

import { createRequire } from 'node:module';
import { join } from 'node:path';
import { isDeepStrictEqual, inspect } from 'node:util';

export let checks = 0;

// A package from where `install` put it: ATLASKV_TOURS.
export function installed(name) {
  const directory = process.env.ATLASKV_TOURS;
  if (!directory) throw new Error('ATLASKV_TOURS is not set: the directory that tours/install was given');
  return createRequire(join(directory, 'package.json'))(name);
}

function fail(text) {
  console.error(text);
  process.exit(1);
}

// Buffers are compared as buffers, and objects without a prototype as others.
const plain = (value) => (value instanceof Map ? Object.fromEntries(value) : value);

export function expect(what, got, wanted) {
  checks += 1;
  if (!isDeepStrictEqual(plain(got), wanted)) fail(`${what}: ${inspect(got)}, not ${inspect(wanted)}`);
}

export function expectThat(what, holds) {
  expect(what, Boolean(holds), true);
}

export async function expectError(what, text, call) {
  checks += 1;
  let got;
  try {
    got = await call();
  } catch (error) {
    if (!String(error.message).includes(text)) fail(`${what}: refused with ${error.message}, not with ${text}`);
    return;
  }
  fail(`${what}: ${inspect(got)}, not refused with ${text}`);
}

// Runs the tour that the command line names: TOUR HOST PORT [SECONDS].
export async function run(client, tours) {
  const [tour, host, port, ...rest] = process.argv.slice(2);
  if (!(tour in tours)) fail(`${client}: no tour ${tour}; there are: ${Object.keys(tours).join(', ')}`);
  const named = (text) => `${client}: ${text}`;
  process.on('unhandledRejection', (error) => fail(named(error?.stack ?? error)));
  await tours[tour](host, Number(port), ...rest);
  console.log(named(`${checks} checks`));
  process.exit(0);
}

// Counts on a thousand keys while slots move from node to node, until standard input ends.
export async function moving(r) {
  const counts = Array(1000).fill(0);
  await Promise.all(counts.map((_, index) => r.set(`move:${index}`, '0')));
  let ended = false;
  process.stdin.on('end', () => { ended = true; }).resume();
  console.log('ready');
  const any = () => Math.floor(Math.random() * counts.length);
  while (!ended) {
    const index = any();
    counts[index] += 1;
    expect('INCR', await r.incr(`move:${index}`), counts[index]);
    const some = Array.from({ length: 20 }, any);
    const got = await Promise.all(some.map((other) => r.get(`move:${other}`)));
    expect('GET of some', got, some.map((other) => String(counts[other])));
  }
  const got = await Promise.all(counts.map((_, index) => r.get(`move:${index}`)));
  expect('GET at the end', got, counts.map(String));
}

// A mix of commands on keys of its own for some seconds. `ask` takes a command's words and returns its reply.
export async function soak(ask, seconds) {
  const end = Date.now() + Number(seconds) * 1000;
  const mine = `js${Math.random().toString(16).slice(2, 10)}`;
  const expected = new Map();
  const key = () => `${mine}:${Math.floor(Math.random() * 2000)}`;
  let count = 0;
  while (Date.now() < end) {
    const name = key();
    switch (Math.floor(Math.random() * 8)) {
      case 0: case 1: {
        const value = 'v'.repeat([0, 10, 100, 5000][Math.floor(Math.random() * 4)]) + Math.random();
        expected.set(name, value);
        expect(`SET ${name}`, String(await ask('SET', name, value)), 'OK');
        break;
      }
      case 2: case 3: case 4:
        expect(`GET ${name}`, await ask('GET', name), expected.get(name) ?? null);
        break;
      case 5:
        expect(`DEL ${name}`, await ask('DEL', name), expected.delete(name) ? 1 : 0);
        break;
      case 6: {
        const asked = Array.from({ length: 50 }, key);
        const got = await Promise.all(asked.map((other) => ask('GET', other)));
        expect('a pipeline', got, asked.map((other) => expected.get(other) ?? null));
        break;
      }
      default: {
        const before = Number((await ask('GET', `${mine}:counter`)) ?? 0);
        expect('INCRBY', await ask('INCRBY', `${mine}:counter`, '7'), before + 7);
      }
    }
    count += 1;
  }
  for (const name of [...expected.keys(), `${mine}:counter`]) await ask('DEL', name);
  console.log(`${count} rounds`);
}
