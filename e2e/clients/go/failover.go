package main

import (
	"context"
	stderrors "errors"
	"fmt"
	"io"
	"os"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// denied: who may not write there is told so, and may go on.
func denied(ctx context.Context, client *clientv3.Client) error {
	if _, err := client.Put(ctx, "elsewhere", "x"); !stderrors.Is(err, rpctypes.ErrPermissionDenied) {
		return fmt.Errorf("got %v", err)
	}
	_, err := client.Put(ctx, "go/denied", "not")
	return err
}

const (
	// Seconds; less than the work takes, so that a lease that is not renewed any more is over before the end.
	failoverTTL  = 10
	failoverKeys = "go/failover/key/"
	failoverSum  = "go/failover/sum"
)

// failover: the leader is killed and started again while all this works, until whoever started the program closes its
// standard input. The client makes writes that failed again only when they cannot have been done; the others are the
// program's. Session, lock, leadership and watch go on by themselves.
func failover(ctx context.Context, client *clientv3.Client) error {
	session, err := concurrency.NewSession(client, concurrency.WithTTL(failoverTTL), concurrency.WithContext(ctx))
	if err != nil {
		return err
	}
	defer session.Close()
	lock := concurrency.NewMutex(session, "go/failover/lock")
	if err := lock.Lock(ctx); err != nil {
		return err
	}
	election := concurrency.NewElection(session, "go/failover/leader")
	if err := election.Campaign(ctx, "me"); err != nil {
		return err
	}
	watched := client.Watch(ctx, failoverKeys, clientv3.WithPrefix(), clientv3.WithRev(election.Rev()+1))
	written, failed, err := work(ctx, client)
	if err != nil {
		return err
	}
	if err := seen(watched, written); err != nil {
		return err
	}
	if err := kept(ctx, client, written); err != nil {
		return err
	}
	if err := stillHeld(ctx, client, session, lock, election); err != nil {
		return err
	}
	fmt.Printf("   %d writes, %d calls failed\n", len(written), failed)
	return nil
}

type write struct {
	key      string
	revision int64
}

// work writes until standard input ends: one key after the other, and beside each a sum by STM.
func work(ctx context.Context, client *clientv3.Client) (written []write, failed int, err error) {
	over := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	added, doubtful := 0, 0
	for open := true; open; {
		select {
		case <-over:
			open = false
		case <-time.After(10 * time.Millisecond):
		}
		key := fmt.Sprintf("%s%06d", failoverKeys, len(written))
		if answer, err := client.Put(ctx, key, "x"); err == nil {
			written = append(written, write{key, answer.Header.Revision})
		} else if !unavailable(err) {
			return nil, 0, fmt.Errorf("%s: %w", key, err)
		} else {
			failed, open = failed+1, true
		}
		if err := add(ctx, client); err == nil {
			added++
		} else if !unavailable(err) {
			return nil, 0, fmt.Errorf("the sum: %w", err)
		} else {
			failed, doubtful = failed+1, doubtful+1
		}
	}
	got, err := client.Get(ctx, failoverSum)
	if err != nil {
		return nil, 0, err
	}
	sum := 0
	fmt.Sscan(string(got.Kvs[0].Value), &sum)
	return written, failed, expect(sum >= added && sum <= added+doubtful, "a sum of %d: added %d, perhaps %d more", sum, added, doubtful)
}

func add(ctx context.Context, client *clientv3.Client) error {
	_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
		var sum int
		fmt.Sscan(stm.Get(failoverSum), &sum)
		stm.Put(failoverSum, fmt.Sprint(sum+1))
		return nil
	}, concurrency.WithAbortContext(ctx))
	return err
}

// unavailable: no answer, or that of a member without a leader.
func unavailable(err error) bool {
	var told rpctypes.EtcdError
	if stderrors.As(err, &told) {
		return told.Code() == codes.Unavailable
	}
	return status.Code(err) == codes.Unavailable
}

// seen: the watch has every write that was acknowledged, in order, and goes on until the last.
func seen(watched clientv3.WatchChan, written []write) error {
	events, last := map[int64]string{}, int64(0)
	for last < written[len(written)-1].revision {
		answer, open := <-watched
		if err := answer.Err(); err != nil || !open {
			return fmt.Errorf("the watch has ended: %v", err)
		}
		for _, event := range answer.Events {
			if event.Kv.ModRevision <= last {
				return fmt.Errorf("an event of revision %d after one of %d", event.Kv.ModRevision, last)
			}
			last = event.Kv.ModRevision
			events[last] = string(event.Kv.Key)
		}
	}
	for _, write := range written {
		if err := expect(events[write.revision] == write.key, "no event of %v", write); err != nil {
			return err
		}
	}
	return nil
}

// kept: nothing that was acknowledged is lost.
func kept(ctx context.Context, client *clientv3.Client, written []write) error {
	got, err := client.Get(ctx, failoverKeys, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return err
	}
	there := map[string]int64{}
	for _, kv := range got.Kvs {
		there[string(kv.Key)] = kv.ModRevision
	}
	for _, write := range written {
		// One that failed may have been done, later than the one that was made again.
		if err := expect(there[write.key] >= write.revision, "%v is lost", write); err != nil {
			return err
		}
	}
	return nil
}

func stillHeld(
	ctx context.Context, client *clientv3.Client, session *concurrency.Session, lock *concurrency.Mutex,
	election *concurrency.Election,
) error {
	select {
	case <-session.Done():
		return fmt.Errorf("the session is over")
	default:
	}
	owned, err := client.Txn(ctx).If(lock.IsOwner()).Commit()
	if err != nil {
		return err
	}
	other, err := concurrency.NewSession(client, concurrency.WithContext(ctx))
	if err != nil {
		return err
	}
	defer other.Close()
	refused := concurrency.NewMutex(other, "go/failover/lock").TryLock(ctx)
	leader, err := election.Leader(ctx)
	if err != nil {
		return err
	}
	return expect(owned.Succeeded && refused == concurrency.ErrLocked && string(leader.Kvs[0].Key) == election.Key(),
		"the lock is owned: %v, another is told %v, %v leads", owned.Succeeded, refused, leader.Kvs)
}
