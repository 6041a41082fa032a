package cluster

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
)

// TestReplicasThatDifferAreFound compares nodes that are no cluster and were told different
// things.
func TestReplicasThatDifferAreFound(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, test := range []struct{ first, second, want string }{
		{"CREATE TABLE a(x); INSERT INTO a VALUES(1)", "CREATE TABLE a(x); INSERT INTO a VALUES(2)", "|2"},
		{"CREATE TABLE a(x); INSERT INTO a VALUES(1)", "CREATE TABLE a(x); INSERT INTO a VALUES(1), (2)", "|2"},
		{"CREATE TABLE a(x); INSERT INTO a VALUES(1)", "CREATE TABLE a(x INT); INSERT INTO a VALUES(1)", "a(x INT)"},
	} {
		c := &Cluster{}
		for _, script := range []string{test.first, test.second} {
			n, err := colmena.New(colmena.Config{NodeID: "alone", DataDir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			c.nodes = append(c.nodes, n)
			if _, err := n.DB().ExecContext(ctx, script); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.compare(ctx); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s, and %s: %v", test.first, test.second, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}
