package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/mentasystems/colmena"
)

// nodeEnv, when set, makes this program a node of the cluster. It holds the node's flags.
const nodeEnv = "COLMENA_EXAMPLE_HA_NODE"

// nodeEnds begins the line in which a node says why it ended.
const nodeEnds = "node: "

// nodeFlags are what a node is started with. Addresses may be others at every start of
// the whole demo.
type nodeFlags struct {
	ID, Dir, Advertise string
	Join               []string // empty: the node that forms the cluster
	Learner            bool
	Nodes              []string // IDs of all nodes
	Page               string   // where the supervisor serves the page, "" without one
	Token              string
	Run                int64 // when the supervisor began, Unix milliseconds
}

// leaderWait is how long a write waits for a leader before it is refused. An election
// takes less than a second; a node that finds nobody for this long is cut off.
const leaderWait = 3 * time.Second

// runNode is the life of a node's process: until SIGTERM, or until its standard input
// closes, so that it cannot outlive who started it.
func runNode(flags string) error {
	var f nodeFlags
	if err := json.Unmarshal([]byte(flags), &f); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		stop()
	}()
	logger := slog.New(slog.NewTextHandler(os.Stderr, nil))
	slog.SetDefault(logger)
	a := newApplication(f)
	cfg := colmena.Config{
		NodeID: f.ID, DataDir: f.Dir, Bind: "127.0.0.1:0", Advertise: f.Advertise, Dial: dialAs(f.ID),
		Bootstrap: len(f.Join) == 0, Join: f.Join, LeaderWait: leaderWait, Logger: logger,
		OnApply: a.applied, OnEvent: a.happened,
	}
	if f.Learner {
		cfg.JoinAs = colmena.JoinAsNonvoter
	}
	node, err := colmena.New(cfg)
	if err != nil {
		return err
	}
	return errors.Join(a.serve(ctx, node), node.Close())
}

// serve answers HTTP and keeps the books until ctx ends.
func (a *application) serve(ctx context.Context, node *colmena.Node) error {
	if err := a.open(node); err != nil {
		return err
	}
	defer a.close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	// Streams end with the node: a server that shuts down waits for its requests.
	var reserve unused
	server := &http.Server{Handler: a.handler(), BaseContext: func(net.Listener) context.Context { return ctx }, ReadHeaderTimeout: 5 * time.Second, ConnState: reserve.note}
	server.RegisterOnShutdown(reserve.close)
	go func() { _ = server.Serve(listener) }()
	if err := json.NewEncoder(os.Stdout).Encode(started{Bind: node.Addr(), HTTP: listener.Addr().String()}); err != nil {
		return err
	}
	a.keepBooks(ctx)
	// Writes under way are answered before the node closes.
	end, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	return server.Shutdown(end)
}

// unused are connections on which nothing was asked yet. Clients open some in reserve, and a
// server that shuts down would wait for them as it does for requests under way.
type unused struct {
	mu    sync.Mutex
	conns map[net.Conn]bool
	over  bool
}

func (u *unused) note(c net.Conn, state http.ConnState) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case state != http.StateNew:
		delete(u.conns, c)
	case u.over:
		_ = c.Close()
	default:
		if u.conns == nil {
			u.conns = map[net.Conn]bool{}
		}
		u.conns[c] = true
	}
}

func (u *unused) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
	for c := range u.conns {
		_ = c.Close()
	}
}
