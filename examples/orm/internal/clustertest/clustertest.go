// Package clustertest gives a test the handle of a follower, and compares all replicas
// when the test is done.
package clustertest

import (
	"context"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/examples/orm/internal/cluster"
)

// timeout bounds every wait.
const timeout = 30 * time.Second

// Follower starts a cluster of three and returns a node that does not lead.
func Follower(t *testing.T) *colmena.Node {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := cluster.Start(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		if err := c.Compare(ctx); err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	n, err := c.Follower(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Context ends before the test's own time does.
func Context(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	t.Cleanup(cancel)
	return ctx
}
