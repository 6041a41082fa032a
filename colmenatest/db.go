package colmenatest

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/samecontent"
)

// Option changes the configuration of node i before it starts. What holds the nodes of a
// cluster together is not an option's to change, see NewCluster.
type Option func(i int, cfg *colmena.Config)

// Timeout bounds every wait for nodes.
const Timeout = 30 * time.Second

// DB returns an empty database of a node of its own. The node listens on no port, keeps
// its files in the test's temporary directory without syncing its log, and is closed when
// the test ends, after SQLite has examined the file.
func DB(tb testing.TB, opts ...Option) *sql.DB {
	tb.Helper()
	dir, label := tb.TempDir(), newLabel()
	cfg := colmena.Config{DataDir: dir, UnsafeNoRaftLogFsync: true, Logger: newLogger(tb, "")}
	for _, o := range opts {
		o(0, &cfg)
	}
	var node *colmena.Node
	var err error
	label.do(func() { node, err = colmena.New(cfg) })
	if err != nil {
		tb.Fatalf("start a node: %v", err)
	}
	tb.Cleanup(func() {
		if !tb.Failed() {
			checkFiles(tb, node)
		}
		if err := node.Close(); err != nil {
			tb.Errorf("close the node: %v", err)
		}
		label.check(tb)
	})
	return node.DB()
}

// checkFiles has SQLite examine every database of a node.
func checkFiles(tb testing.TB, node *colmena.Node) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	for _, name := range node.Databases() {
		err := withLocal(node, name, func(db *sql.DB) error { return samecontent.Check(ctx, db) })
		if err != nil {
			tb.Errorf("node %s, database %s: %v", node.ID(), name, err)
		}
	}
}

// withLocal calls f with a database as this node alone has it.
func withLocal(node *colmena.Node, name string, f func(*sql.DB) error) error {
	db, err := node.OpenDB(name, colmena.None)
	if err != nil {
		return err
	}
	defer db.Close()
	return f(db)
}
