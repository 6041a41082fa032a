package colmena_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

// TestEveryNodeAnswersAlike runs the same statements through each node's handle.
func TestEveryNodeAnswersAlike(t *testing.T) {
	c := testcluster.New(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Timeout)
	defer cancel()
	if _, err := c.Node(0).DB().ExecContext(ctx, "CREATE TABLE v(id INTEGER PRIMARY KEY, f REAL, s TEXT UNIQUE, b BLOB, at DATETIME, ok BOOLEAN)"); err != nil {
		t.Fatal(err)
	}
	moment := time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.FixedZone("", -3600))
	for i := range 3 {
		conn, err := c.Node(i).DB().Conn(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		name := strings.Repeat("x", i+1)
		var id int64
		if err := conn.QueryRowContext(ctx, "INSERT INTO v(f,s,b,at,ok) VALUES(?,?,?,?,?) RETURNING id", 0.5, name, []byte{0, 1}, moment, true).Scan(&id); err != nil || id != int64(i+1) {
			t.Fatalf("node %d: RETURNING gives %d, %v", i, id, err)
		}
		var last, changes int64
		if err := conn.QueryRowContext(ctx, "SELECT last_insert_rowid(), changes()").Scan(&last, &changes); err != nil || last != id || changes != 1 {
			t.Errorf("node %d: last_insert_rowid() %d, changes() %d, %v", i, last, changes, err)
		}
		if _, err := conn.ExecContext(ctx, "INSERT INTO v(s) VALUES(?)", name); !colmena.IsUnique(err) || err.Error() != "constraint failed: UNIQUE constraint failed: v.s (2067)" {
			t.Errorf("node %d: a duplicate gives %v", i, err)
		}
		var refused *colmena.RefusedError
		if _, err := conn.ExecContext(ctx, "ATTACH 'x' AS y"); !errors.As(err, &refused) {
			t.Errorf("node %d: ATTACH gives %v", i, err)
		}
		for j := range 3 {
			for _, level := range []colmena.ConsistencyLevel{colmena.Weak, colmena.Strong} {
				var f float64
				var s string
				var b []byte
				var at time.Time
				var ok bool
				err := c.Node(j).DB().QueryRowContext(colmena.WithConsistency(ctx, level), "SELECT f, s, b, at, ok FROM v WHERE id=?", id).Scan(&f, &s, &b, &at, &ok)
				if err != nil || f != 0.5 || s != name || !bytes.Equal(b, []byte{0, 1}) || !at.Equal(moment) || !ok {
					t.Errorf("written on %d, read on %d at %v: %v %q %v %v %v, %v", i, j, level, f, s, b, at, ok, err)
				}
			}
		}
	}
}
