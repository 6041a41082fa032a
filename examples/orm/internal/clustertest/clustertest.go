// Package clustertest gives a test of this module a node of a cluster of three that does
// not lead. When the test is done all replicas are compared.
package clustertest

import (
	"context"
	"testing"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/colmenatest"
)

// Follower starts a cluster of three and returns a node that does not lead.
func Follower(t *testing.T) *colmena.Node {
	t.Helper()
	c := colmenatest.NewCluster(t, 3)
	return c.Node(c.Follower())
}

// Context ends before the test's own time does.
func Context(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), colmenatest.Timeout)
	t.Cleanup(cancel)
	return ctx
}
