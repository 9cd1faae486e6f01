"""Uses a cluster behind TLS and with users as programs in Python do, through etcd3gw. It takes the endpoints from ENDPOINTS
and what it shows and trusts from CA, CERT, KEY, USERNAME and PASSWORD, and prints a line for each part that works; the first
that does not ends it. Without users and TLS the package's own tests are run (`run`)."""

import os
import sys
import threading
import time
from urllib.parse import urlsplit

import etcd3gw
from etcd3gw.exceptions import Etcd3Exception

given = os.environ
endpoint = urlsplit(given["ENDPOINTS"].split(",")[0])
client = etcd3gw.Etcd3Client(
    host=endpoint.hostname,
    port=endpoint.port,
    protocol=endpoint.scheme,
    ca_cert=given["CA"],
    cert_cert=given["CERT"],
    cert_key=given["KEY"],
)
# Else a bundle of authorities that the environment names counts, instead of the one that was given.
client.session.trust_env = False


def refused(call, text):
    try:
        call()
    except Etcd3Exception as error:
        assert text in error.detail_text, error.detail_text
    else:
        raise AssertionError(f"not refused: {text}")


def login():
    """The package knows no users: its session sends a token that was asked for by hand. A client certificate names nobody
    over the gateway."""
    refused(lambda: client.put("python/a", "1"), "etcdserver: user name is empty")
    user = {"name": given["USERNAME"], "password": given["PASSWORD"]}
    token = client.post(client.get_url("/auth/authenticate"), json=user)["token"]
    client.session.headers["Authorization"] = token


def kv():
    for number in range(20):
        client.put(f"python/kv/{number:02}", str(number))
    assert client.get("python/kv/07") == [b"7"]
    assert len(client.get_prefix("python/kv/")) == 20
    assert client.create("python/created", "1") and not client.create("python/created", "2")
    assert client.replace("python/created", "1", "2") and not client.replace("python/created", "1", "3")
    assert client.delete_prefix("python/kv/") and not client.get("python/kv/07")


def lease():
    lease = client.lease(ttl=30)
    client.put("python/lease", "1", lease)
    assert lease.refresh() == 30 and lease.keys() == [b"python/lease"]
    lease.revoke()
    assert not client.get("python/lease")


def lock():
    first, second = client.lock("python/door", ttl=30), client.lock("python/door", ttl=30)
    assert first.acquire() and not second.acquire()
    first.release()
    assert second.acquire() and second.is_acquired()
    second.release()


def watch():
    seen = []
    done = threading.Event()

    def told():
        for event in events:
            seen.append((event["kv"]["key"], event.get("type", "PUT")))
            if len(seen) == 3:
                done.set()

    now = client.post(client.get_url("/kv/range"), json={"key": "cHl0aG9uLw=="})["header"]["revision"]
    events, cancel = client.watch_prefix("python/watch/", start_revision=int(now) + 1)
    threading.Thread(target=told, daemon=True).start()
    client.put("python/watch/a", "1")
    client.put("python/watch/b", "2")
    client.delete("python/watch/a")
    assert done.wait(60), seen
    cancel()
    a, b = b"python/watch/a", b"python/watch/b"
    assert seen == [(a, "PUT"), (b, "PUT"), (a, "DELETE")], seen


def denied():
    refused(lambda: client.put("elsewhere", "x"), "etcdserver: permission denied")
    client.put("python/denied", "not")


for part in (login, kv, lease, lock, watch, denied):
    started = time.monotonic()
    part()
    print(f"ok {part.__name__} ({(time.monotonic() - started) * 1000:.0f} ms)", flush=True)
sys.stdout.flush()
# The package's threads do not end by themselves.
os._exit(0)
