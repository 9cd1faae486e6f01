#!/usr/bin/env python3
"""Watches of everything over one HTTP/2 connection by hand, as no client library would behave.

    unread-client.py PORT WATCHES STREAMS RATE

Spreads so many watches over so many streams of one connection to localhost, then prints "ready" and reads RATE bytes a
second until it is ended; with 0 it reads nothing more. When the server ends the connection it prints "cut off".
"""
import socket
import struct
import sys
import threading
import time

port, watches, streams, rate = map(int, sys.argv[1:])
connection = socket.create_connection(("127.0.0.1", port))
connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
sending = threading.Lock()


def frame(kind, flags, stream, body):
    with sending:
        connection.sendall(struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body)


def read(length):
    body = b""
    while len(body) < length:
        piece = connection.recv(length - len(body))
        if not piece:
            raise ConnectionError
        body += piece
    return body


def next_frame():
    head = read(9)
    kind, flags, stream = struct.unpack(">BBI", head[3:])
    return kind, flags, stream, read(int.from_bytes(head[:3], "big"))


def open_watches():
    # POST, http, the path, the authority, content-type and te, without a table or Huffman's code.
    head = b"\x83\x86"
    for name, value in (b"\x04", b"/etcdserverpb.Watch/Watch"), (b"\x01", b"x"), (b"\x0f\x10", b"application/grpc"):
        head += name + bytes([len(value)]) + value
    head += b"\x00\x02te\x08trailers"
    create = b"\x0a\x03\x12\x01\x00"  # create_request {range_end: "\0"}
    message = struct.pack(">BI", 0, len(create)) + create
    for number in range(streams):
        frame(1, 4, 2 * number + 1, head)
        left = watches // streams
        while left:
            # Less than the window that a server gives at first, and time to give more.
            frame(0, 0, 2 * number + 1, message * min(left, 500))
            left -= min(left, 500)
            time.sleep(0.02)


def follow():
    """Reads at the rate, gives windows back and answers pings."""
    while True:
        kind, flags, stream, body = next_frame()
        if kind == 0 and body:
            time.sleep(len(body) / rate)
            for target in stream, 0:
                frame(8, 0, target, struct.pack(">I", len(body)))
        elif kind == 6 and not flags & 1:
            frame(6, 1, 0, body)


connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
frame(4, 0, 0, b"")
try:
    if rate:
        threading.Thread(target=open_watches, daemon=True).start()
        print("ready", flush=True)
        follow()
    open_watches()
    print("ready", flush=True)
    while True:
        # Whether the server has closed, without reading what it sent: a write fails then.
        time.sleep(1)
        frame(8, 0, 0, struct.pack(">I", 1))
except (ConnectionError, OSError):
    print("cut off", flush=True)
