package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/mentasystems/colmena"
)

// nodeEnv, when set, makes this program a node of the cluster. It holds the node's flags.
const nodeEnv = "COLMENA_EXAMPLE_NODE"

// nodeFlags are what a node is started with, the same at every start.
type nodeFlags struct {
	ID, Dir, Bind, Join string
}

// What the supervisor asks a node on its standard input, and the answers on its
// standard output, are JSON values one after the other. The first answer is not asked for: it
// tells the address.
type request struct {
	ID  int
	Op  string // see serve
	SQL string
}

type response struct {
	ID      int
	Err     string
	Kind    errorKind
	Addr    string
	Leads   bool
	Applied uint64
	Voters  int
	Content content
}

// errorKind says what a write's error means to who sent it.
type errorKind string

const (
	kindNone    errorKind = ""
	kindAgain   errorKind = "not applied" // send it again
	kindUnknown errorKind = "outcome unknown"
	kindRefused errorKind = "refused" // the statement's own fault
)

const callTimeout = 30 * time.Second

// runNode is the life of a node's process. It ends when its standard input does, so it
// cannot outlive who started it.
func runNode(flags string) error {
	var f nodeFlags
	if err := json.Unmarshal([]byte(flags), &f); err != nil {
		return err
	}
	cfg := colmena.Config{NodeID: f.ID, DataDir: f.Dir, Bind: f.Bind, Logger: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	if f.Join == "" {
		cfg.Bootstrap = true
	} else {
		cfg.Join = []string{f.Join}
	}
	node, err := colmena.New(cfg)
	if err != nil {
		return err
	}
	return errors.Join(serve(node), node.Close())
}

func serve(node *colmena.Node) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// One connection for the script: what PRAGMA foreign_keys sets is a connection's.
	conn, err := node.DB().Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	exec := func(ctx context.Context, sql string) error {
		_, err := conn.ExecContext(ctx, sql)
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	var mu sync.Mutex
	out := json.NewEncoder(os.Stdout)
	say := func(r response) {
		mu.Lock()
		defer mu.Unlock()
		_ = out.Encode(r) // a supervisor that is gone closes the input as well
	}
	say(response{Addr: node.Addr()})
	in := json.NewDecoder(os.Stdin)
	for {
		var r request
		if err := in.Decode(&r); err != nil {
			return nil
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			answer, err := handle(ctx, node, exec, r)
			answer.ID = r.ID
			if err != nil {
				answer.Err, answer.Kind = err.Error(), kindOf(err)
			}
			say(answer)
		})
	}
}

func handle(ctx context.Context, node *colmena.Node, exec func(context.Context, string) error, r request) (a response, err error) {
	switch r.Op {
	case "exec":
		return a, exec(ctx, r.SQL)
	case "status":
		a.Leads, a.Applied = node.IsLeader(), node.AppliedIndex()
		return a, nil
	case "ready":
		if err := node.WaitReady(ctx); err != nil {
			return a, err
		}
		members, err := node.Members(ctx)
		for _, m := range members {
			if m.Voter {
				a.Voters++
			}
		}
		return a, err
	case "content":
		db, err := node.OpenDB("", colmena.None)
		if err != nil {
			return a, err
		}
		defer db.Close()
		a.Content, err = contentOf(ctx, db)
		return a, err
	}
	return a, fmt.Errorf("unknown operation %q", r.Op)
}

// kindOf sorts a write's error. The library has already tried for as long as the
// context lasts; what it gives back says whether the write may have happened.
func kindOf(err error) errorKind {
	var (
		sqlErr  *colmena.SQLError
		chance  *colmena.NonDeterministicError
		refused *colmena.RefusedError
		limit   *colmena.LimitError
	)
	switch {
	case errors.Is(err, colmena.ErrOutcomeUnknown):
		return kindUnknown
	case errors.As(err, &sqlErr), errors.As(err, &chance), errors.As(err, &refused), errors.As(err, &limit):
		return kindRefused
	case colmena.SafeToRetry(err):
		return kindAgain
	}
	return kindUnknown
}
