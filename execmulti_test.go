package colmena_test

import (
	"context"
	"database/sql"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/internal/testcluster"
)

func single(t *testing.T, change ...func(*colmena.Config)) *colmena.Node {
	t.Helper()
	cfg := colmena.Config{DataDir: t.TempDir(), Logger: testcluster.Logger(t, 1)}
	for _, f := range change {
		f(&cfg)
	}
	n, err := colmena.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testcluster.Timeout)
	t.Cleanup(cancel)
	return ctx
}

func mustExec(t *testing.T, db *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.ExecContext(deadline(t), query, args...); err != nil {
		t.Fatalf("%.200s: %v", query, err)
	}
}

func one[T any](t *testing.T, db *sql.DB, query string, args ...any) (v T) {
	t.Helper()
	if err := db.QueryRowContext(deadline(t), query, args...).Scan(&v); err != nil {
		t.Fatalf("%.200s: %v", query, err)
	}
	return v
}

func execMultiBehaves(t *testing.T, n *colmena.Node) {
	ctx, db := deadline(t), n.DB()
	when := time.Date(2024, 2, 29, 12, 0, 0, 5e8, time.UTC)
	got, err := n.ExecMulti(ctx, "", []colmena.Statement{
		{SQL: "CREATE TABLE m(id INTEGER PRIMARY KEY, a, b, at DATETIME, UNIQUE(a))"},
		{SQL: "INSERT INTO m(a, b, at) VALUES(?, :b, ?)", Args: []any{1, sql.Named("b", "two"), when}},
		{SQL: "INSERT INTO m(a, b) VALUES(?, ?), (?, ?)", Args: []any{2, true, 3, sql.NullString{}}},
		{SQL: "UPDATE m SET b = b || a WHERE a > ?", Args: []any{1}},
		{SQL: "SELECT * FROM m"},
		{SQL: " -- nothing"},
		{SQL: "DELETE FROM m WHERE a = 3"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []colmena.ExecResult{{}, {LastInsertID: 1, RowsAffected: 1}, {LastInsertID: 3, RowsAffected: 2}, {LastInsertID: 3, RowsAffected: 2}, {LastInsertID: 3}, {}, {LastInsertID: 3, RowsAffected: 1}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("results are\n%v, want\n%v", got, want)
	}
	if s := one[string](t, db, "SELECT group_concat(a || '=' || ifnull(b, 'NULL'), ' ') FROM m"); s != "1=two 2=12" {
		t.Error(s)
	}
	if at := one[time.Time](t, db, "SELECT at FROM m WHERE a = 1"); !at.Equal(when) {
		t.Error(at)
	}

	// An error in one statement undoes all.
	_, err = n.ExecMulti(ctx, "", []colmena.Statement{
		{SQL: "DELETE FROM m"}, {SQL: "INSERT INTO m(a) VALUES(7), (7)"}, {SQL: "INSERT INTO m(a) VALUES(8)"},
	})
	if !colmena.IsUnique(err) || !colmena.SafeToRetry(err) {
		t.Errorf("a violated constraint gave %v", err)
	}
	var nd *colmena.NonDeterministicError
	_, err = n.ExecMulti(ctx, "", []colmena.Statement{{SQL: "DELETE FROM m"}, {SQL: "INSERT INTO m(a) VALUES(random())"}})
	if !errors.As(err, &nd) {
		t.Errorf("random() gave %v", err)
	}
	_, err = n.ExecMulti(ctx, "", []colmena.Statement{{SQL: "DELETE FROM m"}, {SQL: "INSERT INTO m(a) VALUES(?)", Args: []any{make(chan int)}}})
	if err == nil || !strings.Contains(err.Error(), "statement 2: argument 1") {
		t.Errorf("an argument that cannot be stored gave %v", err)
	}
	if _, err := n.ExecMulti(ctx, "../m", []colmena.Statement{{SQL: "DELETE FROM m"}}); err == nil {
		t.Error("a bad name was accepted")
	}
	if got, err := n.ExecMulti(ctx, "", nil); err != nil || len(got) != 0 {
		t.Errorf("no statements gave %v, %v", got, err)
	}
	if rows := one[int](t, db, "SELECT count(*) FROM m"); rows != 2 {
		t.Errorf("%d rows are left", rows)
	}
}

func TestExecMultiReturnsAResultPerStatement(t *testing.T) { execMultiBehaves(t, single(t)) }

func TestExecMultiThroughAFollower(t *testing.T) {
	c := testcluster.New(t, 3)
	execMultiBehaves(t, c.Node(c.Follower()))
}
