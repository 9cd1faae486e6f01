package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func lease(ctx context.Context, client *clientv3.Client) error {
	granted, err := client.Grant(ctx, 30)
	if err != nil {
		return err
	}
	if _, err := client.Put(ctx, "go/lease/a", "1", clientv3.WithLease(granted.ID)); err != nil {
		return err
	}
	alive, err := client.KeepAliveOnce(ctx, granted.ID)
	if err != nil {
		return err
	}
	left, err := client.TimeToLive(ctx, granted.ID, clientv3.WithAttachedKeys())
	if err != nil {
		return err
	}
	all, err := client.Leases(ctx)
	if err != nil {
		return err
	}
	if err := expect(alive.TTL == 30 && left.GrantedTTL == 30 && len(left.Keys) == 1 && len(all.Leases) > 0,
		"%v, %v, %v", alive, left, all); err != nil {
		return err
	}
	if _, err := client.Revoke(ctx, granted.ID); err != nil {
		return err
	}
	got, err := client.Get(ctx, "go/lease/a")
	if err != nil {
		return err
	}
	if err := expect(got.Count == 0, "revoked, but there: %v", got.Kvs); err != nil {
		return err
	}
	return leasingKV(ctx, client)
}

// leaseExpiry: what is kept alive stays, what is not goes.
func leaseExpiry(ctx context.Context, client *clientv3.Client) error {
	// Longer than a busy machine takes from the grant to the put.
	const ttl = 5
	kept, err := client.Grant(ctx, ttl)
	if err != nil {
		return err
	}
	left, err := client.Grant(ctx, ttl)
	if err != nil {
		return err
	}
	answers, err := client.KeepAlive(ctx, kept.ID)
	if err != nil {
		return err
	}
	watched := client.Watch(ctx, "go/expiry/", clientv3.WithPrefix(), clientv3.WithFilterPut(), clientv3.WithCreatedNotify())
	<-watched
	if _, err := client.Put(ctx, "go/expiry/kept", "", clientv3.WithLease(kept.ID)); err != nil {
		return err
	}
	if _, err := client.Put(ctx, "go/expiry/left", "", clientv3.WithLease(left.ID)); err != nil {
		return err
	}
	gone := <-watched
	if err := expect(len(gone.Events) == 1 && string(gone.Events[0].Kv.Key) == "go/expiry/left", "%v", gone.Events); err != nil {
		return err
	}
	if answer, open := <-answers; !open || answer.TTL != ttl {
		return fmt.Errorf("kept alive: %v", answer)
	}
	got, err := client.Get(ctx, "go/expiry/kept")
	if err != nil {
		return err
	}
	return expect(got.Count == 1, "the lease that was kept alive is gone")
}

// mutex: never two inside, however many want in.
func mutex(ctx context.Context, client *clientv3.Client) error {
	const clients, rounds = 8, 5
	var inside, total int
	var guard sync.Mutex
	return together(clients, func(int) error {
		session, err := concurrency.NewSession(client, concurrency.WithTTL(30), concurrency.WithContext(ctx))
		if err != nil {
			return err
		}
		defer session.Close()
		lock := concurrency.NewMutex(session, "go/mutex")
		for i := 0; i < rounds; i++ {
			if err := lock.Lock(ctx); err != nil {
				return err
			}
			guard.Lock()
			inside, total = inside+1, total+1
			alone := inside == 1
			guard.Unlock()
			time.Sleep(time.Millisecond)
			guard.Lock()
			inside--
			guard.Unlock()
			if !alone {
				return fmt.Errorf("two hold the lock")
			}
			if err := lock.Unlock(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

// election: one leader at a time, seen by all, the next one when it resigns.
func election(ctx context.Context, client *clientv3.Client) error {
	session, err := concurrency.NewSession(client, concurrency.WithTTL(30), concurrency.WithContext(ctx))
	if err != nil {
		return err
	}
	defer session.Close()
	observing, stop := context.WithCancel(ctx)
	defer stop()
	observed := concurrency.NewElection(session, "go/election").Observe(observing)
	const candidates = 4
	var guard sync.Mutex
	seen := map[string]bool{}
	saw := func(value string) bool {
		guard.Lock()
		defer guard.Unlock()
		return seen[value]
	}
	go func() {
		for answer := range observed {
			guard.Lock()
			seen[string(answer.Kvs[0].Value)] = true
			guard.Unlock()
		}
	}()
	return together(candidates, func(number int) error {
		session, err := concurrency.NewSession(client, concurrency.WithTTL(30), concurrency.WithContext(ctx))
		if err != nil {
			return err
		}
		defer session.Close()
		candidate := concurrency.NewElection(session, "go/election")
		if err := candidate.Campaign(ctx, fmt.Sprint(number)); err != nil {
			return err
		}
		leader, err := candidate.Leader(ctx)
		if err != nil {
			return err
		}
		if err := expect(string(leader.Kvs[0].Value) == fmt.Sprint(number), "%d leads, but %v is told", number, leader.Kvs); err != nil {
			return err
		}
		// The observer looks for the leader after each change: one that is gone by then it never sees.
		for !saw(fmt.Sprint(number)) {
			if ctx.Err() != nil {
				return fmt.Errorf("%d leads, and the observer is not told", number)
			}
			time.Sleep(10 * time.Millisecond)
		}
		return candidate.Resign(ctx)
	})
}

const accounts, balance = 10, 100

// atOneMember is a client of one member. The package reads at the revision of its first read without consensus, so a
// member that is behind, of etcd as of Balsa, would refuse the second read as one from the future.
func atOneMember(client *clientv3.Client) (*clientv3.Client, error) {
	return clientv3.New(config(client.Endpoints()[0]))
}

// stm: money moves between accounts from many sides, none is made or lost.
func stm(ctx context.Context, all *clientv3.Client) error {
	client, err := atOneMember(all)
	if err != nil {
		return err
	}
	defer client.Close()
	account := func(number int) string { return fmt.Sprintf("go/stm/%02d", number%accounts) }
	for i := 0; i < accounts; i++ {
		if _, err := client.Put(ctx, account(i), fmt.Sprint(balance)); err != nil {
			return err
		}
	}
	transfer := func(from, to string) error {
		_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
			var have, get int
			fmt.Sscan(stm.Get(from), &have)
			fmt.Sscan(stm.Get(to), &get)
			if from == to || have < 3 {
				return nil
			}
			stm.Put(from, fmt.Sprint(have-3))
			stm.Put(to, fmt.Sprint(get+3))
			return nil
		}, concurrency.WithAbortContext(ctx))
		return err
	}
	err = together(6, func(number int) error {
		for i := 0; i < 20; i++ {
			if err := transfer(account(number+i), account(number*3+i*7)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	got, err := client.Get(ctx, "go/stm/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	sum := 0
	for _, kv := range got.Kvs {
		var have int
		fmt.Sscan(string(kv.Value), &have)
		sum += have
	}
	return expect(sum == accounts*balance, "%d in all accounts, %d were put in", sum, accounts*balance)
}

// stmIsolation: every level that the package offers adds up.
func stmIsolation(ctx context.Context, all *clientv3.Client) error {
	client, err := atOneMember(all)
	if err != nil {
		return err
	}
	defer client.Close()
	for _, isolation := range []concurrency.Isolation{
		concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads,
	} {
		key := fmt.Sprintf("go/stm-isolation/%d", isolation)
		if _, err := client.Put(ctx, key, "0"); err != nil {
			return err
		}
		err := together(4, func(int) error {
			for i := 0; i < 10; i++ {
				_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
					var have int
					fmt.Sscan(stm.Get(key), &have)
					stm.Put(key, fmt.Sprint(have+1))
					return nil
				}, concurrency.WithIsolation(isolation), concurrency.WithAbortContext(ctx))
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		got, err := client.Get(ctx, key)
		if err != nil {
			return err
		}
		if err := expect(string(got.Kvs[0].Value) == "40", "isolation %d: %s", isolation, got.Kvs[0].Value); err != nil {
			return err
		}
	}
	return nil
}

// together runs the same beside itself and answers the first error.
func together(number int, run func(int) error) error {
	errs := make(chan error, number)
	for i := 0; i < number; i++ {
		go func() { errs <- run(i) }()
	}
	for i := 0; i < number; i++ {
		if err := <-errs; err != nil {
			return err
		}
	}
	return nil
}
