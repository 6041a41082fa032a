package colmena_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/mentasystems/colmena"
)

// A node alone is a database like any other: no listener, no configuration.
func ExampleNew() {
	dir, err := os.MkdirTemp("", "colmena-example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	node, err := colmena.New(colmena.Config{DataDir: dir})
	if err != nil {
		log.Fatal(err)
	}
	defer node.Close()

	db := node.DB()
	if _, err := db.Exec("CREATE TABLE kv(key TEXT PRIMARY KEY, value TEXT)"); err != nil {
		log.Fatal(err)
	}
	if _, err := db.Exec("INSERT INTO kv VALUES(?, ?)", "greeting", "hello"); err != nil {
		log.Fatal(err)
	}
	var value string
	if err := db.QueryRow("SELECT value FROM kv WHERE key = ?", "greeting").Scan(&value); err != nil {
		log.Fatal(err)
	}
	fmt.Println(value)
	// Output: hello
}

// The flags of a node in a cluster of three. They are the same at every start: a
// directory that holds state knows its cluster, and Bootstrap and Join then do nothing.
func ExampleConfig_cluster() {
	first := colmena.Config{NodeID: "node-1", DataDir: "/var/lib/app", Bind: "10.0.0.1:9000", Bootstrap: true}
	second := colmena.Config{NodeID: "node-2", DataDir: "/var/lib/app", Bind: "10.0.0.2:9000", Join: []string{"10.0.0.1:9000", "10.0.0.3:9000"}}
	third := colmena.Config{NodeID: "node-3", DataDir: "/var/lib/app", Bind: "10.0.0.3:9000", Join: []string{"10.0.0.1:9000", "10.0.0.2:9000"}}
	_, _, _ = first, second, third
}

// exampleNode is a node on a temporary directory, with a table account(id, balance).
func exampleNode(setup func(*colmena.Node) error) (node *colmena.Node, remove func()) {
	dir, err := os.MkdirTemp("", "colmena-example-")
	if err != nil {
		log.Fatal(err)
	}
	node, err = colmena.New(colmena.Config{NodeID: "node-1", DataDir: dir, Setup: setup})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := node.DB().Exec("CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER CHECK(balance >= 0)); INSERT INTO account VALUES(1, 100), (2, 0)"); err != nil {
		log.Fatal(err)
	}
	return node, func() { node.Close(); os.RemoveAll(dir) }
}

// Statements of one ExecMulti happen together or not at all.
func ExampleNode_ExecMulti() {
	node, remove := exampleNode(nil)
	defer remove()
	move := func(amount int) error {
		_, err := node.ExecMulti(context.Background(), "", []colmena.Statement{
			{SQL: "UPDATE account SET balance = balance + ? WHERE id = 2", Args: []any{amount}},
			{SQL: "UPDATE account SET balance = balance - ? WHERE id = 1", Args: []any{amount}},
		})
		return err
	}
	fmt.Println("30:", move(30))
	fmt.Println("500: refused by the CHECK:", colmena.IsCheck(move(500)))
	var one, two int
	if err := node.DB().QueryRow("SELECT max(balance) FILTER (WHERE id = 1), max(balance) FILTER (WHERE id = 2) FROM account").Scan(&one, &two); err != nil {
		log.Fatal(err)
	}
	fmt.Println(one, two)
	// Output:
	// 30: <nil>
	// 500: refused by the CHECK: true
	// 70 30
}

// A level may be chosen for one query, or for a handle.
func ExampleWithConsistency() {
	node, remove := exampleNode(nil)
	defer remove()
	var balance int

	// Linearizable: sees every write that was acknowledged anywhere before.
	strong := colmena.WithConsistency(context.Background(), colmena.Strong)
	if err := node.DB().QueryRowContext(strong, "SELECT balance FROM account WHERE id = 1").Scan(&balance); err != nil {
		log.Fatal(err)
	}
	fmt.Println(balance)

	// Local: answers without a leader, and may be behind.
	local, err := node.OpenDB("", colmena.None)
	if err != nil {
		log.Fatal(err)
	}
	defer local.Close()
	if err := local.QueryRow("SELECT balance FROM account WHERE id = 1").Scan(&balance); err != nil {
		log.Fatal(err)
	}
	fmt.Println(balance)
	// Output:
	// 100
	// 100
}

type greetRequest struct{ Name string }
type greetResponse struct{ Text, By string }

var greet = colmena.NewHandlerKey[greetRequest, greetResponse]("greet")

// A handler runs on the leader, wherever Forward is called.
func ExampleForward() {
	node, remove := exampleNode(func(n *colmena.Node) error {
		return colmena.RegisterHandler(n, greet, func(_ context.Context, req greetRequest) (greetResponse, error) {
			return greetResponse{Text: "hello " + req.Name, By: n.ID()}, nil
		})
	})
	defer remove()
	resp, err := colmena.Forward(context.Background(), node, greet, greetRequest{Name: "gopher"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.Text, "from", resp.By)
	// Output: hello gopher from node-1
}

// The library sends a write again by itself, through a change of leaders, and it happens
// once. What it gives back when the context ends says whether it may have happened.
func ExampleSafeToRetry() {
	node, remove := exampleNode(nil)
	defer remove()
	deposit := func(ctx context.Context) error {
		_, err := node.DB().ExecContext(ctx, "UPDATE account SET balance = balance + 1 WHERE id = 1")
		switch {
		case err == nil:
			fmt.Println("done, once")
		case errors.Is(err, colmena.ErrOutcomeUnknown):
			fmt.Println("look whether it happened")
		case colmena.SafeToRetry(err):
			fmt.Println("certainly not done")
		}
		return err
	}
	_ = deposit(context.Background())
	ended, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
	defer cancel()
	_ = deposit(ended)
	// Output:
	// done, once
	// certainly not done
}
