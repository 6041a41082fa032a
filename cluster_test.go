package colmena_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

func TestSingleNode(t *testing.T) {
	dir := t.TempDir()
	for run := range 3 {
		start := time.Now()
		n, err := colmena.New(colmena.Config{DataDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		db := n.DB()
		if run == 0 {
			if _, err := db.Exec("CREATE TABLE kv(key TEXT PRIMARY KEY, value TEXT)"); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := db.Exec("INSERT INTO kv VALUES(?, ?)", fmt.Sprint("k", run), "v"); err != nil {
			t.Fatal(err)
		}
		t.Log("to first write", time.Since(start))
		var count int
		if err := db.QueryRow("SELECT count(*) FROM kv").Scan(&count); err != nil || count != run+1 {
			t.Fatalf("%d rows, %v", count, err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestThreeNodes(t *testing.T) {
	c := testcluster.New(t, 3)
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Timeout)
	defer cancel()
	if _, err := c.Node(1).DB().ExecContext(ctx, "CREATE TABLE kv(k INTEGER PRIMARY KEY, v TEXT)"); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		res, err := c.Node(i).DB().ExecContext(ctx, "INSERT INTO kv(v) VALUES(?)", i)
		if err != nil {
			t.Fatal(err)
		}
		if id, _ := res.LastInsertId(); id != int64(i+1) {
			t.Errorf("node %d got LastInsertId %d", i, id)
		}
		for _, level := range []colmena.ConsistencyLevel{colmena.None, colmena.Weak, colmena.Strong} {
			for j := range 3 {
				if level == colmena.None && i != j {
					continue
				}
				var count int
				start := time.Now()
				if err := c.Node(j).DB().QueryRowContext(colmena.WithConsistency(ctx, level), "SELECT count(*) FROM kv").Scan(&count); err != nil || count != i+1 {
					t.Errorf("node %d at %v: %d rows, %v", j, level, count, err)
				}
				t.Logf("write on %d, read on %d at %v: %v", i, j, level, time.Since(start))
			}
		}
	}
}
