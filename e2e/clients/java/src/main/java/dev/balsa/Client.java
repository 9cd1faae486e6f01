package dev.balsa;

import static java.nio.charset.StandardCharsets.UTF_8;

import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.ClientBuilder;
import io.etcd.jetcd.support.CloseableClient;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.election.LeaderKey;
import io.etcd.jetcd.lease.LeaseKeepAliveResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.LeaseOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import io.etcd.jetcd.support.Observers;
import io.etcd.jetcd.watch.WatchEvent;
import java.io.File;
import java.io.IOException;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * Uses a cluster as programs in Java do, through jetcd. It takes the endpoints from ENDPOINTS, what it shows and trusts from
 * CA, CERT, KEY, USERNAME and PASSWORD if they are there, and prints a line for each part that works; the first that does not
 * ends it.
 */
public final class Client {
  private interface Part {
    void run() throws Exception;
  }

  private static final long BOUND_SECONDS = 60;

  private final io.etcd.jetcd.Client client;
  private final int members;

  private Client(Map<String, String> given) throws IOException {
    String[] endpoints = given.get("ENDPOINTS").split(",");
    members = endpoints.length;
    ClientBuilder builder = io.etcd.jetcd.Client.builder().endpoints(endpoints);
    if (given.containsKey("CA")) {
      builder.user(bytes(given.get("USERNAME"))).password(bytes(given.get("PASSWORD")));
      builder.sslContext(ssl -> ssl.trustManager(new File(given.get("CA")))
          .keyManager(new File(given.get("CERT")), new File(given.get("KEY"))));
    }
    client = builder.build();
  }

  public static void main(String[] only) throws IOException {
    Client self = new Client(System.getenv());
    Map<String, Part> parts = new LinkedHashMap<>();
    parts.put("kv", self::kv);
    parts.put("txn", self::txn);
    parts.put("watch", self::watch);
    parts.put("errors", self::errors);
    parts.put("cluster", self::cluster);
    parts.put("lease", self::lease);
    parts.put("lock", self::lock);
    parts.put("election", self::election);
    if (only.length > 0) {
      // They need a user, and somebody who kills the leader.
      parts.put("denied", self::denied);
      parts.put("failover", self::failover);
    }
    for (Map.Entry<String, Part> part : parts.entrySet()) {
      if (only.length > 0 && !List.of(only).contains(part.getKey())) {
        continue;
      }
      long started = System.currentTimeMillis();
      try {
        part.getValue().run();
      } catch (Throwable error) {
        System.out.println("FAILED " + part.getKey() + ": " + error);
        error.printStackTrace(System.out);
        System.exit(1);
      }
      System.out.printf("ok %s (%d ms)%n", part.getKey(), System.currentTimeMillis() - started);
    }
    System.exit(0);
  }

  private static ByteSequence bytes(Object text) {
    return ByteSequence.from(text.toString(), UTF_8);
  }

  private static <T> T await(CompletableFuture<T> future) throws Exception {
    return future.get(BOUND_SECONDS, TimeUnit.SECONDS);
  }

  private static void expect(boolean is, Object what) {
    if (!is) {
      throw new AssertionError(String.valueOf(what));
    }
  }

  private String value(String key) throws Exception {
    var kvs = await(client.getKVClient().get(bytes(key))).getKvs();
    return kvs.isEmpty() ? null : kvs.get(0).getValue().toString(UTF_8);
  }

  private void kv() throws Exception {
    KV kv = client.getKVClient();
    for (int i = 0; i < 30; i++) {
      await(kv.put(bytes("java/kv/" + i), bytes(i)));
    }
    var page = await(kv.get(bytes("java/kv/"),
        GetOption.builder().isPrefix(true).withLimit(10).withSortOrder(GetOption.SortOrder.DESCEND)
            .withSortField(GetOption.SortTarget.MOD).build()));
    expect(page.getCount() == 30 && page.isMore(), page);
    expect(page.getKvs().get(0).getValue().toString(UTF_8).equals("29"), page);
    var before = await(kv.put(bytes("java/kv/0"), bytes("new"), PutOption.builder().withPrevKV().build()));
    expect(before.getPrevKv().getValue().toString(UTF_8).equals("0"), before);
    var deleted = await(kv.delete(bytes("java/kv/"), DeleteOption.builder().isPrefix(true).build()));
    expect(deleted.getDeleted() == 30, deleted);
  }

  private void txn() throws Exception {
    KV kv = client.getKVClient();
    ByteSequence key = bytes("java/txn");
    await(kv.delete(key));
    for (boolean first : new boolean[] {true, false}) {
      var answer = await(kv.txn()
          .If(new Cmp(key, Cmp.Op.EQUAL, CmpTarget.createRevision(0)))
          .Then(Op.put(key, bytes("made"), PutOption.DEFAULT))
          .Else(Op.get(key, GetOption.DEFAULT))
          .commit());
      expect(answer.isSucceeded() == first, answer);
    }
    expect("made".equals(value("java/txn")), value("java/txn"));
  }

  private void watch() throws Exception {
    List<WatchEvent> seen = new ArrayList<>();
    CountDownLatch done = new CountDownLatch(21);
    CompletableFuture<Void> created = new CompletableFuture<>();
    WatchOption option = WatchOption.builder().isPrefix(true).withPrevKV(true).withCreateNotify(true).build();
    try (Watch.Watcher watcher = client.getWatchClient().watch(bytes("java/watch/"), option, Watch.listener(answer -> {
      created.complete(null);
      seen.addAll(answer.getEvents());
      answer.getEvents().forEach(event -> done.countDown());
    }))) {
      await(created);
      for (int i = 0; i < 20; i++) {
        await(client.getKVClient().put(bytes("java/watch/" + i), bytes(i)));
      }
      await(client.getKVClient().delete(bytes("java/watch/3")));
      expect(done.await(BOUND_SECONDS, TimeUnit.SECONDS), "not every event came: " + seen.size());
    }
    for (int i = 0; i < 20; i++) {
      expect(seen.get(i).getKeyValue().getKey().toString(UTF_8).equals("java/watch/" + i), seen.get(i));
    }
    expect(seen.get(20).getEventType() == WatchEvent.EventType.DELETE, seen.get(20));
    expect(seen.get(20).getPrevKV().getValue().toString(UTF_8).equals("3"), seen.get(20));
  }

  private void errors() throws Exception {
    refused("key is not provided", client.getKVClient().put(bytes(""), bytes("x")));
    refused("required revision is a future revision",
        client.getKVClient().get(bytes("a"), GetOption.builder().withRevision(1L << 40).build()));
    refused("requested lease not found",
        client.getKVClient().put(bytes("a"), bytes("x"), PutOption.builder().withLeaseId(987654321).build()));
  }

  private static void refused(String text, CompletableFuture<?> future) throws Exception {
    try {
      await(future);
    } catch (ExecutionException error) {
      expect(error.getMessage().contains(text), error);
      return;
    }
    throw new AssertionError("not refused: " + text);
  }

  private void cluster() throws Exception {
    expect(await(client.getClusterClient().listMember()).getMembers().size() == members, "members");
    String first = System.getenv("ENDPOINTS").split(",")[0];
    expect(await(client.getMaintenanceClient().statusMember(first)).getLeader() != 0, "no leader");
  }

  private void lease() throws Exception {
    long id = await(client.getLeaseClient().grant(2)).getID();
    await(client.getKVClient().put(bytes("java/lease"), bytes("1"), PutOption.builder().withLeaseId(id).build()));
    var left = await(client.getLeaseClient().timeToLive(id, LeaseOption.builder().withAttachedKeys().build()));
    expect(left.getKeys().size() == 1, left);
    CountDownLatch kept = new CountDownLatch(3);
    try (CloseableClient alive =
        client.getLeaseClient().keepAlive(id, Observers.observer((LeaseKeepAliveResponse answer) -> kept.countDown()))) {
      expect(kept.await(BOUND_SECONDS, TimeUnit.SECONDS), "not kept alive");
    }
    expect("1".equals(value("java/lease")), "the lease was kept alive, but its key is gone");
    await(client.getLeaseClient().revoke(id));
    expect(value("java/lease") == null, "the lease was revoked, but its key is there");
  }

  private void lock() throws Exception {
    AtomicInteger inside = new AtomicInteger();
    List<CompletableFuture<Void>> all = new ArrayList<>();
    for (int i = 0; i < 5; i++) {
      all.add(CompletableFuture.runAsync(() -> {
        try {
          long id = await(client.getLeaseClient().grant(60)).getID();
          ByteSequence key = await(client.getLockClient().lock(bytes("java/lock"), id)).getKey();
          expect(inside.incrementAndGet() == 1, "two hold the lock");
          Thread.sleep(5);
          inside.decrementAndGet();
          await(client.getLockClient().unlock(key));
        } catch (Exception error) {
          throw new IllegalStateException(error);
        }
      }));
    }
    await(CompletableFuture.allOf(all.toArray(CompletableFuture[]::new)));
  }

  private void election() throws Exception {
    var election = client.getElectionClient();
    ByteSequence name = bytes("java/election");
    long first = await(client.getLeaseClient().grant(60)).getID();
    long second = await(client.getLeaseClient().grant(60)).getID();
    LeaderKey key = await(election.campaign(name, first, bytes("first"))).getLeader();
    await(election.proclaim(key, bytes("first again")));
    expect(await(election.leader(name)).getKv().getValue().toString(UTF_8).equals("first again"), "another leader");
    var waiting = election.campaign(name, second, bytes("second"));
    await(election.resign(key));
    LeaderKey next = await(waiting).getLeader();
    expect(await(election.leader(name)).getKv().getValue().toString(UTF_8).equals("second"), "another leader");
    await(election.resign(next));
  }

  private void denied() throws Exception {
    refused("permission denied", client.getKVClient().put(bytes("elsewhere"), bytes("x")));
    await(client.getKVClient().put(bytes("java/denied"), bytes("not")));
  }

  /** Seconds; less than the work takes, so that a lease that is not renewed any more is over before the end. */
  private static final long TTL = 10;

  private static final String KEYS = "java/failover/key/";

  /**
   * The leader is killed and started again while all this works, until whoever started the program closes its standard
   * input. Leases and watches go on by themselves; a write that failed is the program's to make again.
   */
  private void failover() throws Exception {
    AtomicBoolean over = new AtomicBoolean();
    Thread input = new Thread(() -> {
      try {
        System.in.readAllBytes();
      } catch (IOException error) {
        System.out.println("standard input: " + error);
      }
      over.set(true);
    });
    input.setDaemon(true);
    input.start();
    long lease = await(client.getLeaseClient().grant(TTL)).getID();
    AtomicInteger renewed = new AtomicInteger();
    client.getLeaseClient().keepAlive(lease,
        Observers.observer((LeaseKeepAliveResponse answer) -> renewed.incrementAndGet()));
    ByteSequence lock = await(client.getLockClient().lock(bytes("java/failover/lock"), lease)).getKey();
    LeaderKey leader =
        await(client.getElectionClient().campaign(bytes("java/failover/leader"), lease, bytes("me"))).getLeader();
    List<WatchEvent> seen = new CopyOnWriteArrayList<>();
    WatchOption option = WatchOption.builder().isPrefix(true).withRevision(leader.getRevision() + 1).build();
    Map<String, Long> written = new LinkedHashMap<>();
    int failed;
    try (Watch.Watcher watcher =
        client.getWatchClient().watch(bytes(KEYS), option, Watch.listener(answer -> seen.addAll(answer.getEvents())))) {
      failed = write(over, written);
      long last = List.copyOf(written.values()).get(written.size() - 1);
      long until = System.currentTimeMillis() + BOUND_SECONDS * 1000;
      while (seen.isEmpty() || revision(seen.get(seen.size() - 1)) < last) {
        expect(System.currentTimeMillis() < until && !watcher.isClosed(), "the watch has ended");
        Thread.sleep(10);
      }
    }
    kept(written, seen);
    expect(await(client.getKVClient().get(lock)).getKvs().get(0).getLease() == lease, "the lock is lost");
    var leads = await(client.getElectionClient().leader(bytes("java/failover/leader"))).getKv();
    expect(leads.getKey().equals(leader.getKey()), "another leads: " + leads);
    System.out.printf("   %d writes, %d calls failed, %d renewals%n", written.size(), failed, renewed.get());
  }

  /** Writes until it is over; how many calls failed. */
  private int write(AtomicBoolean over, Map<String, Long> written) throws Exception {
    int failed = 0;
    while (!over.get() || written.isEmpty()) {
      String key = String.format("%s%06d", KEYS, written.size());
      try {
        written.put(key, await(client.getKVClient().put(bytes(key), bytes("x"))).getHeader().getRevision());
      } catch (ExecutionException error) {
        expect(!error.getMessage().contains("permission denied"), error);
        failed++;
      }
      Thread.sleep(10);
    }
    return failed;
  }

  /** Nothing that was acknowledged is lost, and the watch has each of them, in order. */
  private void kept(Map<String, Long> written, List<WatchEvent> seen) throws Exception {
    Map<Long, String> events = new HashMap<>();
    long before = 0;
    for (WatchEvent event : seen) {
      expect(revision(event) > before, "an event of revision " + revision(event) + " after one of " + before);
      before = revision(event);
      events.put(before, event.getKeyValue().getKey().toString(UTF_8));
    }
    Map<String, Long> there = new HashMap<>();
    await(client.getKVClient().get(bytes(KEYS), GetOption.builder().isPrefix(true).build())).getKvs()
        .forEach(kv -> there.put(kv.getKey().toString(UTF_8), kv.getModRevision()));
    for (Map.Entry<String, Long> write : written.entrySet()) {
      expect(write.getKey().equals(events.get(write.getValue())), "no event of " + write);
      // One that failed may have been done, later than the one that was made again.
      expect(there.getOrDefault(write.getKey(), 0L) >= write.getValue(), write + " is lost");
    }
  }

  private static long revision(WatchEvent event) {
    return event.getKeyValue().getModRevision();
  }
}
