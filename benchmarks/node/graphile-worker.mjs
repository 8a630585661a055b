// graphile-worker: a local queue of 1,000, batched completion; its documentation's page on performance.

import { HOLD, INSERT, connection, fromScratch, now, paced, serve, sleep, timed, version } from "./system.mjs";

const { default: pg } = await fromScratch("pg");
const { makeWorkerUtils, run, runMigrations, Logger } = await fromScratch("graphile-worker");

const CONCURRENCY = 24;
const logger = new Logger(() => (level, message) => level === "error" && console.error(message));
const ADD = "SELECT graphile_worker.add_job($1, $2::json)";

const pooled = async (url, size, work) => {
  const pool = new pg.Pool({ ...connection(url), max: size });
  try {
    return await work(pool);
  } finally {
    await pool.end();
  }
};

await serve({
  version: () => `${version("graphile-worker")} on Node ${process.versions.node}`,

  prepare: ({ url }) => pooled(url, 2, (pgPool) => runMigrations({ pgPool, logger })),

  transactions: ({ url, count, enqueue }) =>
    pooled(url, 1, async (pool) => {
      const client = await pool.connect();
      const seconds = await timed(count, async () => {
        await client.query("BEGIN");
        await client.query(INSERT);
        if (enqueue) await client.query(ADD, ["noop", "{}"]);
        await client.query("COMMIT");
      });
      client.release();
      return seconds;
    }),

  enqueue_many: ({ url, count }) =>
    pooled(url, 2, async (pgPool) => {
      const utils = await makeWorkerUtils({ pgPool, logger });
      const jobs = Array.from({ length: count }, () => ({ identifier: "noop", payload: {} }));
      const begun = now();
      await utils.addJobs(jobs);
      const seconds = now() - begun;
      await utils.release();
      return seconds;
    }),

  enqueue: ({ url, kind, numbers, delay }) =>
    pooled(url, 1, async (pool) => {
      for (const number of numbers)
        await pool.query("SELECT graphile_worker.add_job($1, $2::json, run_at => now() + $3 * interval '1 s')", [
          kind, JSON.stringify({ number }), delay,
        ]);
    }),

  pace: ({ url, count, rate }) =>
    pooled(url, 1, (pool) =>
      paced(count, rate, (number) => pool.query(ADD, ["mark", JSON.stringify({ number })]))),

  produce: ({ url, producers, seconds }) =>
    pooled(url, producers, async (pool) => {
      let made = 0;
      const clients = await Promise.all(Array.from({ length: producers }, () => pool.connect()));
      const until = now() + seconds;
      await Promise.all(clients.map(async (client) => {
        for (; now() < until; made++) await client.query(ADD, ["noop", "{}"]);
        client.release();
      }));
      return made;
    }),

  work: async (url, board, options) => {
    const pgPool = new pg.Pool({ ...connection(url), max: CONCURRENCY + 1 });
    const runner = await run({
      pgPool,
      logger,
      noHandleSignals: true,
      preset: {
        worker: {
          concurrentJobs: CONCURRENCY,
          maxPoolSize: CONCURRENCY + 1,
          localQueue: { size: 1000 },
          completeJobBatchDelay: 0,
          failJobBatchDelay: 0,
        },
      },
      taskList: {
        noop: () => board.add(),
        mark: ({ number }) => board.mark(number),
        hold: async ({ number }) => {
          board.mark(number);
          await sleep(options.hold ?? HOLD);
        },
      },
    });
    await runner.promise;
  },
});
