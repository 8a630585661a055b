// A system on Node: answers requests line by line, or is a worker. The other half is benchmarks/systems/node.py.
// Packages lie in a scratch folder (BENCH_PACKAGES), and are imported from there.

import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import readline from "node:readline";
import { pathToFileURL } from "node:url";

const require = createRequire(path.join(process.env.BENCH_PACKAGES, "package.json"));

export const fromScratch = (name) => import(pathToFileURL(require.resolve(name)).href);
export const version = (name) =>
  JSON.parse(fs.readFileSync(path.join(process.env.BENCH_PACKAGES, "node_modules", name, "package.json"))).version;
export const now = () => Number(process.hrtime.bigint()) / 1e9; // the machine's one monotonic clock, as in Python
export const sleep = (seconds) => new Promise((done) => setTimeout(done, Math.max(0, seconds * 1000)));
export const HOLD = 3600;
export const INSERT = "INSERT INTO business (note) VALUES ('an order')";

// libpq's "postgresql://user@/database?host=folder", in the words of pg.
export function connection(url) {
  const [, user, host, port, database, query] = url.match(/^postgresql:\/\/([^@]*)@([^:/]*):?(\d*)\/([^?]*)\??(.*)$/);
  const folder = new URLSearchParams(query).get("host");
  return { user, database, host: folder ?? host, ...(port ? { port: Number(port) } : {}) };
}

// What has been done, in a file that the run has mapped: see benchmarks/board.py.
export class Board {
  constructor(file) {
    if (!fs.existsSync(file)) throw new Error(`${file} is not there`);
    this.file = fs.openSync(file, "r+");
    this.count = 0n;
    this.told = 0n;
    setInterval(() => this.tell(), 2).unref();
  }

  add() {
    this.count += 1n;
    if (this.count - this.told >= 100n) this.tell();
  }

  mark(number) {
    const start = Buffer.alloc(8);
    start.writeDoubleLE(now());
    fs.writeSync(this.file, start, 0, 8, 8 * (number + 1));
    this.add();
  }

  tell() {
    if (this.told === this.count) return;
    const count = Buffer.alloc(8);
    count.writeBigInt64LE(this.count);
    fs.writeSync(this.file, count, 0, 8, 0);
    this.told = this.count;
  }
}

export async function timed(count, once) {
  for (let number = 0; number < 20; number++) await once();
  const begun = now();
  for (let number = 0; number < count; number++) await once();
  return now() - begun;
}

export async function paced(count, rate, once) {
  const commits = [];
  const begun = now() + 0.01;
  for (let number = 0; number < count; number++) {
    await sleep(begun + number / rate - now());
    await once(number);
    commits.push(now());
  }
  return commits;
}

export async function serve(system) {
  const [url, board, options] = process.argv.slice(2);
  if (url) return system.work(url, new Board(board), JSON.parse(options));
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { do: name, ...words } = JSON.parse(line);
    let answer;
    try {
      answer = { answer: (await system[name](words)) ?? null };
    } catch (error) {
      answer = { error: String(error) };
    }
    fs.writeSync(3, JSON.stringify(answer) + "\n");
  }
}
