// Uses a cluster as programs on Node.js do, through the npm package etcd3. It takes the endpoints from ENDPOINTS, what it
// shows and trusts from CA, CERT, KEY, USERNAME and PASSWORD if they are there, and prints a line for each part that works;
// the first that does not ends it.
'use strict';

const assert = require('node:assert');
const { readFileSync } = require('node:fs');
const { Etcd3, EtcdLeaseInvalidError, isRecoverableError } = require('etcd3');

const { ENDPOINTS, CA, CERT, KEY, USERNAME, PASSWORD } = process.env;
const client = new Etcd3({
  hosts: ENDPOINTS.split(','),
  auth: CA && { username: USERNAME, password: PASSWORD },
  credentials: CA && { rootCertificate: readFileSync(CA), certChain: readFileSync(CERT), privateKey: readFileSync(KEY) },
});

const parts = {
  async kv() {
    await client.put('node/kv/a').value('1');
    assert.equal(await client.get('node/kv/a').string(), '1');
    assert.equal(await client.get('node/kv/none').string(), null);
    const all = client.namespace('node/kv/');
    await Promise.all([...Array(30).keys()].map((i) => all.put(`n${i}`).value(i)));
    assert.equal((await all.getAll().prefix('n').keys()).length, 30);
    assert.equal(await all.getAll().prefix('n').count(), 30);
    const sorted = await all.getAll().prefix('n').sort('Mod', 'Descend').limit(3).keys();
    assert.equal(sorted.length, 3);
    assert.equal((await all.delete().all()).deleted, '31');
  },

  async txn() {
    await client.delete().prefix('node/txn/');
    const create = () =>
      client
        .if('node/txn/a', 'Create', '==', 0)
        .then(client.put('node/txn/a').value('made'))
        .else(client.get('node/txn/a'))
        .commit();
    assert.equal((await create()).succeeded, true);
    const again = await create();
    assert.equal(again.succeeded, false);
    assert.equal(again.responses[0].response_range.kvs[0].value.toString(), 'made');
  },

  async stm() {
    await client.put('node/stm').value(0);
    const add = () =>
      client.stm({ retries: 100 }).transact(async (tx) => {
        const have = await tx.get('node/stm').number();
        await tx.put('node/stm').value(have + 1);
      });
    await Promise.all([...Array(10)].map(add));
    assert.equal(await client.get('node/stm').number(), 10);
  },

  async watch() {
    const watcher = await client.watch().prefix('node/watch/').withPreviousKV().create();
    const seen = [];
    const done = new Promise((resolve, reject) => {
      watcher.on('error', reject);
      watcher.on('data', (answer) => {
        seen.push(...answer.events);
        if (seen.length === 21) resolve();
      });
    });
    for (let i = 0; i < 20; i++) await client.put(`node/watch/${i}`).value(i);
    await client.delete().key('node/watch/3');
    await done;
    assert.deepEqual(seen.slice(0, 20).map((event) => event.kv.key.toString()), [...Array(20).keys()].map((i) => `node/watch/${i}`));
    assert.equal(seen[20].type, 'Delete');
    assert.equal(seen[20].prev_kv.value.toString(), '3');
    await watcher.cancel();
  },

  async errors() {
    await assert.rejects(client.put('').value('x'), /key is not provided/);
    await assert.rejects(client.get('a').revision(1 << 30).string(), /required revision is a future revision/);
    await assert.rejects(client.put('a').value('1').lease('987654321'), EtcdLeaseInvalidError);
  },

  async cluster() {
    const members = await client.cluster.memberList({});
    assert.equal(members.members.length, ENDPOINTS.split(',').length);
    const status = await client.maintenance.status();
    assert.match(status.version, /^3\.\d+\.\d+$/);
  },

  async lease() {
    const lease = client.lease(2);
    await lease.put('node/lease/a').value('1');
    assert.equal((await client.leaseClient.leaseTimeToLive({ ID: await lease.grant(), keys: true })).keys.length, 1);
    // It keeps itself alive: longer than its time to live it is there.
    await new Promise((resolve) => setTimeout(resolve, 3000));
    assert.equal(await client.get('node/lease/a').string(), '1');
    await lease.revoke();
    assert.equal(await client.get('node/lease/a').string(), null);
  },

  async lock() {
    let inside = 0;
    const work = async () => {
      for (;;) {
        const lock = client.lock('node/lock').ttl(30);
        try {
          await lock.acquire();
        } catch (error) {
          if (error.constructor.name !== 'EtcdLockFailedError') throw error;
          await new Promise((resolve) => setTimeout(resolve, 10));
          continue;
        }
        inside++;
        assert.equal(inside, 1, 'two hold the lock');
        await new Promise((resolve) => setTimeout(resolve, 5));
        inside--;
        return lock.release();
      }
    };
    await Promise.all([...Array(5)].map(work));
  },

  async election() {
    const election = client.election('node/election', 10);
    const campaign = election.campaign('first');
    await new Promise((resolve, reject) => campaign.on('elected', resolve).on('error', reject));
    assert.equal(await election.leader(), 'first');
    const observer = await election.observe();
    const second = client.election('node/election', 10).campaign('second');
    const elected = new Promise((resolve, reject) => second.on('elected', resolve).on('error', reject));
    const changed = new Promise((resolve) => observer.on('change', (leader) => leader === 'second' && resolve()));
    await campaign.resign();
    await elected;
    await changed;
    await observer.cancel();
    await second.resign();
  },
};

const pause = () => new Promise((resolve) => setTimeout(resolve, 10));

// Calls again until there is an answer, which the package itself does three times. Counts what failed.
const failed = {};
async function insist(call) {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      if (!isRecoverableError(error)) throw error;
      failed[error.constructor.name] = 1 + (failed[error.constructor.name] ?? 0);
      await pause();
    }
  }
}

// Parts that are done when they are named: they need a user, and somebody who kills the leader.
const named = {
  async denied() {
    await assert.rejects(client.put('elsewhere').value('x'), /permission denied/);
    await client.put('node/denied').value('not');
  },

  // The leader is killed and started again while all this works, until whoever started the program closes its standard
  // input. Leases, leadership and watches go on by themselves.
  async failover() {
    // Seconds; less than the work takes, so that a lease that is not renewed any more is over before the end.
    const TTL = 10;
    const KEYS = 'node/failover/key/';
    let over = false;
    process.stdin.on('end', () => (over = true)).resume();
    const lost = (error) => {
      console.log(`FAILED failover: lost: ${error.stack}`);
      process.exit(1);
    };
    const lease = client.lease(TTL).on('lost', lost);
    await lease.put('node/failover/lease').value('1');
    const lock = client.lock('node/failover/lock').ttl(TTL);
    await lock.acquire();
    const election = client.election('node/failover/leader', TTL);
    const campaign = election.campaign('me');
    await new Promise((resolve) => campaign.on('elected', resolve).on('error', lost));
    const seen = [];
    const watcher = await client.watch().prefix(KEYS).create();
    watcher.on('error', lost).on('data', (answer) => seen.push(...answer.events));

    const written = [];
    while (!over || written.length === 0) {
      const key = `${KEYS}${String(written.length).padStart(6, '0')}`;
      const answer = await insist(() => client.put(key).value('x').exec());
      written.push([key, Number(answer.header.revision)]);
      await pause();
    }
    const [, last] = written[written.length - 1];
    const revision = (event) => Number(event.kv.mod_revision);
    while (seen.length === 0 || revision(seen[seen.length - 1]) < last) await pause();

    seen.forEach((event, i) => assert.ok(i === 0 || revision(seen[i - 1]) < revision(event), `event ${i} out of order`));
    const events = new Map(seen.map((event) => [revision(event), event.kv.key.toString()]));
    const there = await insist(() => client.getAll().prefix(KEYS).exec());
    const kept = new Map(there.kvs.map((kv) => [kv.key.toString(), Number(kv.mod_revision)]));
    for (const [key, at] of written) {
      assert.equal(events.get(at), key, `no event of ${key}, written at ${at}`);
      // One that failed may have been done, later than the one that was made again.
      assert.ok(kept.get(key) >= at, `${key} was written and is lost`);
    }
    assert.equal(await client.get('node/failover/lease').string(), '1', 'the lease is over');
    assert.equal(await election.leader(), 'me', 'another leads');
    const rival = client.lock('node/failover/lock').ttl(TTL);
    await assert.rejects(rival.acquire(), (error) => error.constructor.name === 'EtcdLockFailedError');
    await lock.release();
    console.log(`   ${written.length} writes, calls failed: ${JSON.stringify(failed)}`);
  },
};

async function main() {
  const only = process.argv.slice(2);
  for (const [name, run] of Object.entries(only.length > 0 ? { ...parts, ...named } : parts)) {
    if (only.length > 0 && !only.includes(name)) continue;
    const started = Date.now();
    try {
      await run();
    } catch (error) {
      console.log(`FAILED ${name}: ${error.stack}`);
      process.exit(1);
    }
    console.log(`ok ${name} (${Date.now() - started} ms)`);
  }
  client.close();
  // What is left open must not keep the process.
  process.exit(0);
}

setTimeout(() => {
  console.log('FAILED: not done in 2 minutes');
  process.exit(1);
}, 120_000).unref();
main();
