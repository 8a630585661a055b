// pg-boss: batches of 500, fetched without a pause while they come back full, LISTEN/NOTIFY on.

import { HOLD, INSERT, connection, fromScratch, now, paced, serve, sleep, timed, version } from "./system.mjs";

const { default: pg } = await fromScratch("pg");
const { PgBoss } = await fromScratch("pg-boss");

const QUEUE = "bench";
const BATCH = 500;

const boss = (url, options) => {
  const made = new PgBoss({ ...connection(url), useListenNotify: true, ...options });
  made.on("error", (error) => console.error(String(error)));
  return made;
};

// Only producers: nothing is supervised, nothing migrated.
const producing = async (url, max, work) => {
  const made = boss(url, { max, supervise: false, schedule: false, migrate: false });
  await made.start();
  try {
    return await work(made);
  } finally {
    await made.stop({ graceful: false });
  }
};

const perform = async (board, lasting, { kind, number }) => {
  if (kind === "noop") return board.add();
  board.mark(number);
  if (kind === "hold") await sleep(lasting);
};

await serve({
  version: () => `${version("pg-boss")} on Node ${process.versions.node}`,

  prepare: async ({ url }) => {
    const made = boss(url, { max: 2 });
    await made.start();
    await made.createQueue(QUEUE, { notify: true });
    await made.stop({ graceful: false });
  },

  transactions: ({ url, count, enqueue }) =>
    producing(url, 2, async (made) => {
      const client = new pg.Client(connection(url));
      await client.connect();
      const db = { executeSql: (text, values) => client.query(text, values) };
      const seconds = await timed(count, async () => {
        await client.query("BEGIN");
        await client.query(INSERT);
        if (enqueue) await made.send(QUEUE, { kind: "noop" }, { db });
        await client.query("COMMIT");
      });
      await client.end();
      return seconds;
    }),

  enqueue_many: ({ url, count }) =>
    producing(url, 2, async (made) => {
      const jobs = Array.from({ length: count }, () => ({ data: { kind: "noop" } }));
      const begun = now();
      await made.insert(QUEUE, jobs);
      return now() - begun;
    }),

  enqueue: ({ url, kind, numbers, delay }) =>
    producing(url, 2, async (made) => {
      for (const number of numbers) await made.send(QUEUE, { kind, number }, delay ? { startAfter: delay } : {});
    }),

  pace: ({ url, count, rate }) =>
    producing(url, 2, (made) => paced(count, rate, (number) => made.send(QUEUE, { kind: "mark", number }))),

  produce: ({ url, producers, seconds }) =>
    producing(url, producers, async (made) => {
      let made_ = 0;
      await made.send(QUEUE, { kind: "noop" });
      const until = now() + seconds;
      await Promise.all(Array.from({ length: producers }, async () => {
        for (; now() < until; made_++) await made.send(QUEUE, { kind: "noop" });
      }));
      return made_;
    }),

  work: async (url, board, options) => {
    const made = boss(url, {});
    await made.start();
    await made.work(QUEUE, { batchSize: BATCH, burstWhenBatchFull: true }, (jobs) =>
      Promise.all(jobs.map((job) => perform(board, options.hold ?? HOLD, job.data))));
    await new Promise(() => setInterval(() => {}, 1000));
  },
});
