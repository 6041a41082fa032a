package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	boltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	_ "modernc.org/sqlite" // registers the driver
)

// nothing is a state machine that does nothing.
type nothing struct{}

func (nothing) Apply(*raft.Log) any                 { return nil }
func (nothing) Snapshot() (raft.FSMSnapshot, error) { return nothing{}, nil }
func (nothing) Restore(r io.ReadCloser) error       { return r.Close() }
func (nothing) Persist(s raft.SnapshotSink) error   { return s.Close() }
func (nothing) Release()                            {}

// benchConsensus measures three raft nodes, and returns the p50 of one writer in seconds.
func benchConsensus(dir string, r *report) (p50 float64, err error) {
	var nodes []*raft.Raft
	var servers []raft.Server
	var transports []*raft.NetworkTransport
	for i := range 3 {
		t, err := raft.NewTCPTransport("127.0.0.1:0", nil, 3, time.Second, io.Discard)
		if err != nil {
			return 0, err
		}
		defer t.Close()
		transports = append(transports, t)
		servers = append(servers, raft.Server{ID: raft.ServerID(fmt.Sprint("floor", i)), Address: t.LocalAddr()})
	}
	for i := range 3 {
		conf := raft.DefaultConfig()
		conf.LocalID, conf.Logger, conf.NoLegacyTelemetry = servers[i].ID, hclog.NewNullLogger(), true
		store, err := boltdb.New(boltdb.Options{Path: filepath.Join(dir, fmt.Sprint("floor", i)), BoltOptions: &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType}})
		if err != nil {
			return 0, err
		}
		defer store.Close()
		cache, err := raft.NewLogCache(512, store)
		if err != nil {
			return 0, err
		}
		n, err := raft.NewRaft(conf, nothing{}, cache, store, raft.NewDiscardSnapshotStore(), transports[i])
		if err != nil {
			return 0, err
		}
		defer func() { _ = n.Shutdown().Error() }()
		nodes = append(nodes, n)
	}
	if err := nodes[0].BootstrapCluster(raft.Configuration{Servers: servers}).Error(); err != nil {
		return 0, err
	}
	leader, err := floorLeader(nodes)
	if err != nil {
		return 0, err
	}
	data := make([]byte, 120)
	for _, workers := range []int{1, 128} {
		rate, mid, p99, err := measure(workers, func(context.Context, int, int) error { return leader.Apply(data, time.Second).Error() })
		if err != nil {
			return 0, err
		}
		r.add(line{"floor", fmt.Sprintf("consensus alone, %d writers", workers), rate, mid, p99, ""})
		if workers == 1 {
			p50 = mid.Seconds()
		}
	}
	return p50, nil
}

func floorLeader(nodes []*raft.Raft) (*raft.Raft, error) {
	for until := time.Now().Add(20 * time.Second); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		for _, n := range nodes {
			if n.State() == raft.Leader && n.Barrier(time.Second).Error() == nil {
				return n, nil
			}
		}
	}
	return nil, fmt.Errorf("no leader was elected")
}

// openPlain opens plain SQLite as an application would: WAL, synchronous=FULL.
func openPlain(dir string) (*sql.DB, error) {
	return sql.Open("sqlite", "file:"+filepath.Join(dir, "plain.db")+"?_pragma=journal_mode(wal)&_pragma=synchronous(full)&_pragma=busy_timeout(10000)")
}

// freeAddr is a loopback address nobody listens on.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
