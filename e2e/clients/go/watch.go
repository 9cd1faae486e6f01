package main

import (
	"context"
	stderrors "errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watch: every event once, in order, with what was there before, from the past on.
func watch(ctx context.Context, client *clientv3.Client) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	first, err := client.Put(ctx, "go/watch/0", "0")
	if err != nil {
		return err
	}
	past := client.Watch(ctx, "go/watch/", clientv3.WithPrefix(), clientv3.WithPrevKV(),
		clientv3.WithRev(first.Header.Revision))
	deletes := client.Watch(ctx, "go/watch/", clientv3.WithPrefix(), clientv3.WithFilterPut(), clientv3.WithFragment())
	const writes = 100
	for i := 1; i < writes; i++ {
		if _, err := client.Put(ctx, fmt.Sprintf("go/watch/%d", i%7), fmt.Sprint(i)); err != nil {
			return err
		}
	}
	gone, err := client.Delete(ctx, "go/watch/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	seen, last := 0, int64(0)
	for seen < writes+int(gone.Deleted) {
		answer := <-past
		if err := answer.Err(); err != nil {
			return err
		}
		for _, event := range answer.Events {
			if err := expect(event.Kv.ModRevision >= last, "revision %d after %d", event.Kv.ModRevision, last); err != nil {
				return err
			}
			if err := expect(event.IsCreate() == (event.PrevKv == nil), "%v without what was there", event); err != nil {
				return err
			}
			last = event.Kv.ModRevision
			seen++
		}
	}
	filtered := 0
	for filtered < int(gone.Deleted) {
		for _, event := range (<-deletes).Events {
			if err := expect(event.Type == clientv3.EventTypeDelete, "%v", event); err != nil {
				return err
			}
			filtered++
		}
	}
	return nil
}

// watchCompaction: who asks for what is compacted is told so, and from where on there is something.
func watchCompaction(ctx context.Context, client *clientv3.Client) error {
	first, err := client.Put(ctx, "go/compact", "1")
	if err != nil {
		return err
	}
	last, err := client.Put(ctx, "go/compact", "2")
	if err != nil {
		return err
	}
	if _, err := client.Compact(ctx, last.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		return err
	}
	answer := <-client.Watch(ctx, "go/compact", clientv3.WithRev(first.Header.Revision))
	if err := expect(stderrors.Is(answer.Err(), rpctypes.ErrCompacted), "%v", answer.Err()); err != nil {
		return err
	}
	return expect(answer.CompactRevision == last.Header.Revision, "compacted at %d", answer.CompactRevision)
}

// watchProgress: a client that asks is told up to where it has seen everything.
func watchProgress(ctx context.Context, client *clientv3.Client) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watched := client.Watch(ctx, "go/progress", clientv3.WithCreatedNotify())
	if answer := <-watched; !answer.Created {
		return fmt.Errorf("the first answer is %v", answer)
	}
	other, err := client.Put(ctx, "go/elsewhere", "1")
	if err != nil {
		return err
	}
	for {
		if err := client.RequestProgress(ctx); err != nil {
			return err
		}
		select {
		case answer := <-watched:
			if answer.IsProgressNotify() && answer.Header.Revision >= other.Header.Revision {
				return nil
			}
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
