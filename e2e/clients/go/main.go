// Program clients uses a cluster as programs in Go do: through etcd's own client, with its packages on top. It takes
// the endpoints from ENDPOINTS, what it shows and trusts from CA, CERT, KEY, USERNAME and PASSWORD if they are there, and
// prints a line for each part that works; the first that does not ends it.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// bound is longer than any part takes on a slow machine.
const bound = 2 * time.Minute

// part is one thing that a client does. It works below a prefix of its own.
type part struct {
	name string
	run  func(context.Context, *clientv3.Client) error
}

var parts = []part{
	{"kv", kv},
	{"txn", txn},
	{"paging", paging},
	{"errors", errors},
	{"watch", watch},
	{"watch-compaction", watchCompaction},
	{"watch-progress", watchProgress},
	{"wrappers", wrappers},
	{"cluster", cluster},
	{"snapshot", snapshot},
	{"lease", lease},
	{"lease-expiry", leaseExpiry},
	{"mutex", mutex},
	{"election", election},
	{"stm", stm},
	{"stm-isolation", stmIsolation},
	{"pings", pings},
}

// named are done when they are asked for: they need a user, and somebody who kills the leader.
var named = []part{
	{"denied", denied},
	{"failover", failover},
}

func main() {
	only := os.Args[1:]
	if len(only) > 0 {
		parts = append(parts, named...)
	}
	client, err := clientv3.New(config(strings.Split(os.Getenv("ENDPOINTS"), ",")...))
	if err != nil {
		fail("dial", err)
	}
	defer client.Close()
	for _, part := range parts {
		if len(only) > 0 && !contains(only, part.name) {
			continue
		}
		started := time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), bound)
		if err := part.run(ctx, client); err != nil {
			fail(part.name, err)
		}
		cancel()
		fmt.Printf("ok %s (%d ms)\n", part.name, time.Since(started).Milliseconds())
	}
}

func config(endpoints ...string) clientv3.Config {
	config := clientv3.Config{
		Endpoints:   endpoints,
		DialTimeout: 5 * time.Second,
		Username:    os.Getenv("USERNAME"),
		Password:    os.Getenv("PASSWORD"),
		Logger:      zap.NewNop(), // refused requests are part of it
	}
	if ca := os.Getenv("CA"); ca != "" {
		files := transport.TLSInfo{TrustedCAFile: ca, CertFile: os.Getenv("CERT"), KeyFile: os.Getenv("KEY")}
		tls, err := files.ClientConfig()
		if err != nil {
			fail("certificates", err)
		}
		config.TLS = tls
	}
	return config
}

func contains(all []string, one string) bool {
	for _, each := range all {
		if each == one {
			return true
		}
	}
	return false
}

func fail(name string, err error) {
	fmt.Printf("FAILED %s: %v\n", name, err)
	os.Exit(1)
}

// expect is an error that says what is not as it should be, or nil.
func expect(is bool, format string, args ...any) error {
	if is {
		return nil
	}
	return fmt.Errorf(format, args...)
}
