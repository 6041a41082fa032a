package colmenatest_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"testing"

	"github.com/mentasystems/colmena"
	"github.com/mentasystems/colmena/colmenatest"
)

// exampleT stands for the *testing.T that a test has and an Example has not.
type exampleT struct {
	testing.TB
	failed   bool
	cleanups []func()
}

func (t *exampleT) Helper()                           {}
func (t *exampleT) Name() string                      { return "Example" }
func (t *exampleT) Log(...any)                        {}
func (t *exampleT) Failed() bool                      { return t.failed }
func (t *exampleT) Error(args ...any)                 { t.failed = true; fmt.Println(args...) }
func (t *exampleT) Errorf(format string, args ...any) { t.Error(fmt.Sprintf(format, args...)) }
func (t *exampleT) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (t *exampleT) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (t *exampleT) Cleanup(f func())                  { t.cleanups = append(t.cleanups, f) }

func (t *exampleT) TempDir() string {
	dir, err := os.MkdirTemp("", "colmenatest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// end is what the testing package does when a test is over.
func (t *exampleT) end() {
	for len(t.cleanups) > 0 {
		last := len(t.cleanups) - 1
		f := t.cleanups[last]
		t.cleanups = t.cleanups[:last]
		f()
	}
}

// deposit is an application's function, which the examples test.
func deposit(ctx context.Context, db *sql.DB, id, amount int) (balance int, err error) {
	err = colmena.InTx(ctx, db, nil, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, "INSERT INTO account VALUES(?, ?) ON CONFLICT DO UPDATE SET balance = balance + excluded.balance", id, amount); err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, "SELECT balance FROM account WHERE id = ?", id).Scan(&balance)
	})
	return balance, err
}

const schema = "CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL)"

// In a test, t is its *testing.T.
func ExampleDB() {
	t := &exampleT{}
	defer t.end()

	db := colmenatest.DB(t)
	if _, err := db.Exec(schema); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		fmt.Println(deposit(context.Background(), db, 1, 30))
	}
	// Output:
	// 30 <nil>
	// 60 <nil>
}

// What was acknowledged survives the machine that led, and the application goes on.
func ExampleNewCluster() {
	t := &exampleT{}
	defer t.end()

	c := colmenatest.NewCluster(t, 3)
	db := c.DB(c.Follower())
	if _, err := db.Exec(schema); err != nil {
		t.Fatal(err)
	}
	fmt.Println(deposit(context.Background(), db, 1, 30))
	killed := c.Leader()
	c.Kill(killed)
	fmt.Println(deposit(context.Background(), db, 1, 30))
	c.Restart(killed)
	c.WaitConverged()
	var balance int
	local := c.OpenDB(killed, "", colmena.None)
	if err := local.QueryRow("SELECT balance FROM account").Scan(&balance); err != nil {
		t.Fatal(err)
	}
	fmt.Println("the node that was killed has", balance)
	// Output:
	// 30 <nil>
	// 60 <nil>
	// the node that was killed has 60
}

// The minority's side of a cut cable cannot write, and can read what it has.
func ExampleCluster_Isolate() {
	t := &exampleT{}
	defer t.end()

	c := colmenatest.NewCluster(t, 3, func(_ int, cfg *colmena.Config) { cfg.LeaderWait = -1 })
	if _, err := c.DB(0).Exec(schema); err != nil {
		t.Fatal(err)
	}
	c.WaitConverged()
	alone := c.Follower()
	c.Isolate(alone)
	ctx := colmena.WithConsistency(context.Background(), colmena.None)
	var accounts int
	if err := c.DB(alone).QueryRowContext(ctx, "SELECT count(*) FROM account").Scan(&accounts); err != nil {
		t.Fatal(err)
	}
	fmt.Println(accounts, "accounts, as far as it knows")
	fmt.Println(deposit(context.Background(), c.DB(c.Leader()), 1, 30))
	c.Heal()
	c.WaitConverged()
	if err := c.DB(alone).QueryRowContext(ctx, "SELECT count(*) FROM account").Scan(&accounts); err != nil {
		t.Fatal(err)
	}
	fmt.Println(accounts, "account after Heal")
	// Output:
	// 0 accounts, as far as it knows
	// 30 <nil>
	// 1 account after Heal
}

// What an application does with an error that is hard to bring about.
func ExampleCluster_FailNext() {
	t := &exampleT{}
	defer t.end()

	c := colmenatest.NewCluster(t, 1)
	if _, err := c.DB(0).Exec(schema); err != nil {
		t.Fatal(err)
	}
	c.FailNext(&colmena.TxAbortedError{Reason: colmena.TxAbortLeader}) // InTx tries again
	fmt.Println(deposit(context.Background(), c.DB(0), 1, 30))
	c.FailNext(colmena.ErrOutcomeUnknown) // and gives this one back
	fmt.Println(deposit(context.Background(), c.DB(0), 1, 30))
	// Output:
	// 30 <nil>
	// 0 colmena: outcome unknown
}
