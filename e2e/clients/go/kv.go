package main

import (
	"bytes"
	"context"
	stderrors "errors"
	"fmt"
	"io"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/ordering"
)

func kv(ctx context.Context, client *clientv3.Client) error {
	first, err := client.Put(ctx, "go/kv/a", "1")
	if err != nil {
		return err
	}
	second, err := client.Put(ctx, "go/kv/a", "2", clientv3.WithPrevKV())
	if err != nil {
		return err
	}
	if err := expect(string(second.PrevKv.Value) == "1", "previous value %q", second.PrevKv.Value); err != nil {
		return err
	}
	old, err := client.Get(ctx, "go/kv/a", clientv3.WithRev(first.Header.Revision))
	if err != nil {
		return err
	}
	if err := expect(len(old.Kvs) == 1 && string(old.Kvs[0].Value) == "1", "old value %v", old.Kvs); err != nil {
		return err
	}
	// Through every member, each of which must know the last write.
	for _, endpoint := range client.Endpoints() {
		one, err := clientv3.New(config(endpoint))
		if err != nil {
			return err
		}
		got, err := one.Get(ctx, "go/kv/a")
		if err != nil {
			return fmt.Errorf("%s: %w", endpoint, err)
		}
		if err := expect(string(got.Kvs[0].Value) == "2", "%s: %q", endpoint, got.Kvs[0].Value); err != nil {
			return err
		}
		one.Close()
	}
	deleted, err := client.Delete(ctx, "go/kv/", clientv3.WithPrefix(), clientv3.WithPrevKV())
	if err != nil {
		return err
	}
	return expect(deleted.Deleted == 1 && len(deleted.PrevKvs) == 1, "deleted %v", deleted)
}

func txn(ctx context.Context, client *clientv3.Client) error {
	create := func() (*clientv3.TxnResponse, error) {
		return client.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision("go/txn/a"), "=", 0)).
			Then(clientv3.OpPut("go/txn/a", "made")).
			Else(clientv3.OpGet("go/txn/a")).Commit()
	}
	if _, err := client.Delete(ctx, "go/txn/", clientv3.WithPrefix()); err != nil {
		return err
	}
	made, err := create()
	if err != nil {
		return err
	}
	again, err := create()
	if err != nil {
		return err
	}
	got := again.Responses[0].GetResponseRange()
	if err := expect(made.Succeeded && !again.Succeeded && string(got.Kvs[0].Value) == "made", "%v", again); err != nil {
		return err
	}
	nested, err := client.Txn(ctx).
		If(clientv3.Compare(clientv3.Value("go/txn/").WithPrefix(), "=", "made")).
		Then(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("go/txn/b", "1"), clientv3.OpGet("go/txn/b")}, nil)).Commit()
	if err != nil {
		return err
	}
	inner := nested.Responses[0].GetResponseTxn()
	return expect(inner.Succeeded && len(inner.Responses[1].GetResponseRange().Kvs) == 1, "%v", nested)
}

func paging(ctx context.Context, client *clientv3.Client) error {
	const keys = 250
	for i := 0; i < keys; i++ {
		if _, err := client.Put(ctx, fmt.Sprintf("go/page/%03d", i), strings.Repeat("x", 100)); err != nil {
			return err
		}
	}
	from, seen := "go/page/", 0
	end := clientv3.GetPrefixRangeEnd("go/page/")
	for {
		page, err := client.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(60))
		if err != nil {
			return err
		}
		if err := expect(page.Count == int64(keys-seen), "count %d after %d", page.Count, seen); err != nil {
			return err
		}
		seen += len(page.Kvs)
		if !page.More {
			break
		}
		from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
	}
	last, err := client.Get(ctx, "go/page/", clientv3.WithLastKey()...)
	if err != nil {
		return err
	}
	return expect(seen == keys && string(last.Kvs[0].Key) == "go/page/249", "%d keys, last %v", seen, last.Kvs)
}

// The client knows errors by their texts.
func errors(ctx context.Context, client *clientv3.Client) error {
	_, empty := client.Put(ctx, "", "x")
	_, future := client.Get(ctx, "a", clientv3.WithRev(1<<40))
	_, duplicate := client.Txn(ctx).Then(clientv3.OpPut("a", "1"), clientv3.OpPut("a", "2")).Commit()
	_, large := client.Put(ctx, "a", strings.Repeat("x", 1600*1024))
	_, lease := client.Put(ctx, "a", "1", clientv3.WithLease(987654321))
	_, member := client.MemberRemove(ctx, 12345)
	for _, check := range []struct{ got, want error }{
		{empty, rpctypes.ErrEmptyKey},
		{future, rpctypes.ErrFutureRev},
		{duplicate, rpctypes.ErrDuplicateKey},
		{large, rpctypes.ErrRequestTooLarge},
		{lease, rpctypes.ErrLeaseNotFound},
		{member, rpctypes.ErrMemberNotFound},
	} {
		if !stderrors.Is(check.got, check.want) {
			return fmt.Errorf("got %v, want %v", check.got, check.want)
		}
	}
	return nil
}

// wrappers are the packages that stand between a program and the client.
func wrappers(ctx context.Context, client *clientv3.Client) error {
	spaced := namespace.NewKV(client, "go/space/")
	ordered := ordering.NewKV(spaced, func(clientv3.Op, clientv3.OpResponse, int64) error {
		return fmt.Errorf("a member answered from before what was seen")
	})
	for i := 0; i < 30; i++ {
		if _, err := ordered.Put(ctx, fmt.Sprint(i), "x"); err != nil {
			return err
		}
		if _, err := ordered.Get(ctx, fmt.Sprint(i)); err != nil {
			return err
		}
	}
	count := 0
	base, errs := mirror.NewSyncer(client, "go/space/", 0).SyncBase(ctx)
	for page := range base {
		count += len(page.Kvs)
	}
	if err := <-errs; err != nil {
		return err
	}
	return expect(count == 30, "mirrored %d", count)
}

// leasingKV keeps what it read until another client wants to write it.
func leasingKV(ctx context.Context, client *clientv3.Client) error {
	cached, closeCache, err := leasing.NewKV(client, "go/leasing/")
	if err != nil {
		return err
	}
	defer closeCache()
	if _, err := cached.Put(ctx, "go/leased", "1"); err != nil {
		return err
	}
	for i := 0; i < 3; i++ {
		got, err := cached.Get(ctx, "go/leased")
		if err != nil {
			return err
		}
		if err := expect(string(got.Kvs[0].Value) == "1", "%v", got.Kvs); err != nil {
			return err
		}
	}
	return nil
}

func cluster(ctx context.Context, client *clientv3.Client) error {
	members, err := client.MemberList(ctx)
	if err != nil {
		return err
	}
	leaders := map[uint64]bool{}
	for _, endpoint := range client.Endpoints() {
		status, err := client.Status(ctx, endpoint)
		if err != nil {
			return err
		}
		leaders[status.Leader] = true
		if err := expect(len(status.Errors) == 0 && status.DbSize > 0, "status %v", status); err != nil {
			return err
		}
	}
	if err := client.Sync(ctx); err != nil {
		return err
	}
	return expect(len(members.Members) == len(client.Endpoints()) && len(leaders) == 1, "%v, leaders %v", members, leaders)
}

func snapshot(ctx context.Context, client *clientv3.Client) error {
	one, err := clientv3.New(config(client.Endpoints()[0]))
	if err != nil {
		return err
	}
	defer one.Close()
	reader, err := one.Snapshot(ctx)
	if err != nil {
		return err
	}
	var all bytes.Buffer
	if _, err := io.Copy(&all, reader); err != nil {
		return err
	}
	return expect(all.Len() > 1000, "a snapshot of %d bytes", all.Len())
}
