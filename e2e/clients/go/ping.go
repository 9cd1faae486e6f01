package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"
	_ "unsafe" // for the link below

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/status"
)

// The servers are started with --grpc-keepalive-min-time=200ms, so that this takes seconds. gRPC for Go makes any client's
// interval 10 s at least, by this variable, before it is asked to ping.
//
//go:linkname minPingTime google.golang.org/grpc/internal.KeepaliveMinPingTime
var minPingTime time.Duration

const allowed, tooOften = 400 * time.Millisecond, 50 * time.Millisecond

// goAways counts the connections that gRPC says it lost for pinging too often. It has no other place where it says so.
type goAways struct{ count atomic.Int64 }

func (seen *goAways) Write(line []byte) (int, error) {
	if strings.Contains(string(line), "too_many_pings") {
		seen.count.Add(1)
	}
	return len(line), nil
}

var told = &goAways{}

func init() {
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, told))
}

// pings: who pings within bounds keeps the connection; who does so too often, or with no call open, loses it, and the
// client goes on with another.
func pings(ctx context.Context, client *clientv3.Client) error {
	defer func(time time.Duration) { minPingTime = time }(minPingTime)
	minPingTime = tooOften
	for _, each := range []struct {
		name                 string
		interval             time.Duration
		withoutStream, watch bool
		loses                bool
	}{
		{"allowed", allowed, false, true, false},
		{"none without a call", allowed, false, false, false},
		{"too often", tooOften, false, true, true},
		{"without a call", allowed, true, false, true},
	} {
		pinging, err := clientv3.New(clientv3.Config{
			Endpoints:            client.Endpoints()[:1],
			DialKeepAliveTime:    each.interval,
			DialKeepAliveTimeout: bound,
			PermitWithoutStream:  each.withoutStream,
			Logger:               zap.NewNop(),
		})
		if err != nil {
			return err
		}
		err = pinged(ctx, pinging, each.watch, each.loses)
		pinging.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", each.name, err)
		}
	}
	return nil
}

func pinged(ctx context.Context, client *clientv3.Client, watch, loses bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	before := told.count.Load()
	if _, err := client.Put(ctx, "go/ping", ""); err != nil {
		return err
	}
	var watched clientv3.WatchChan
	if watch {
		watched = client.Watch(ctx, "go/ping", clientv3.WithCreatedNotify())
		<-watched
	}
	if loses {
		for told.count.Load() == before {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return fmt.Errorf("the connection is kept")
			}
		}
	} else {
		// Long enough for twice the pings that are too many.
		time.Sleep(8 * allowed)
		if err := expect(told.count.Load() == before, "the connection is lost"); err != nil {
			return err
		}
	}
	return goesOn(ctx, client, watched)
}

// goesOn: the client makes another connection by itself. It doubles its interval each time that it loses one, until it is
// allowed; a call that was under way then fails.
func goesOn(ctx context.Context, client *clientv3.Client, watched clientv3.WatchChan) error {
	for {
		_, err := client.Put(ctx, "go/ping", "on")
		if err == nil {
			break
		}
		if status.Code(err) != codes.Unavailable {
			return err
		}
	}
	if watched == nil {
		return nil
	}
	for answer := range watched {
		for _, event := range answer.Events {
			if string(event.Kv.Value) == "on" {
				return nil
			}
		}
	}
	return fmt.Errorf("the watch has ended")
}
