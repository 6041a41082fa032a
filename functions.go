package colmena

import (
	"fmt"
	"strings"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/sqlite"
)

// Function is a scalar SQL function written in Go, for Config.Functions.
//
// Every node computes every write itself, so Func must give the same result for the
// same arguments on every machine and at any time: no clock, no randomness, no files,
// no network, no state, and no floating-point arithmetic whose last bits depend on the
// processor. It is called by several goroutines at once, may be called more or less
// often than the statement's text suggests, must not use the node, and should be quick:
// nothing interrupts it. Whatever may change a result needs a new Version.
//
// Reads use what their own node has. A write that uses a function is refused with a
// *FunctionNotReadyError until all nodes, learners and those that are down included,
// have it with this Version; so start the nodes with it one by one, and write with it
// then. The log notes the version a write was made with: a node started without it, or
// with another, while it still has such a write to apply, stops applying that database
// (EventReplicaHalted) and goes on when it is started with the version again. So to
// change a function while writes use it, add the new one under a new name.
//
// A function may be used in indexes, generated columns, CHECK constraints, triggers,
// views and defaults. From then on it belongs to the schema: all nodes must keep it, in
// the same version, until the last object that uses it is dropped. What an index or a
// stored column holds is not computed anew for a new version, so give changed behaviour
// a new name. A file that CopyTo wrote needs the function wherever it is opened.
type Function struct {
	// Name has letters, digits and '_' and does not begin with a digit; at most 64
	// bytes; case does not matter. It may not be the name of a function of SQLite's.
	Name string
	// Args is the number of arguments, -1 any.
	Args int
	// Version tells this function from others of its name, on other nodes or earlier.
	Version string
	// Func gets int64, float64, string, []byte or nil, which it may keep, and returns
	// one of these or a bool. An error, or a panic, is the statement's error.
	Func func(args []any) (any, error)
}

// Collation is an order of texts written in Go, for Config.Collations. What is said of
// Function holds for it too. Compare is negative, 0 or positive, and a total order.
type Collation struct {
	Name, Version string // as of Function; SQLite's are BINARY, NOCASE and RTRIM
	Compare       func(a, b string) int
}

// FunctionNotReadyError refuses a write that uses a function or collation of
// Config.Functions or Config.Collations which some nodes do not have, or have with
// another Version. Nothing was applied. Start those nodes with it, or remove them.
type FunctionNotReadyError struct {
	Name    string
	Missing []string // node IDs
}

func (e *FunctionNotReadyError) Error() string {
	return fmt.Sprintf("colmena: %q cannot be used in a write yet: node %s lacks it or has another version; start every node with it in Config.Functions or Config.Collations",
		e.Name, strings.Join(e.Missing, ", "))
}

// library is what the configuration adds to SQL, as the engine takes it.
func (c *Config) library() (functions []engine.Function, collations []engine.Collation) {
	for _, f := range c.Functions {
		functions = append(functions, engine.Function{Function: sqlite.Function{Name: f.Name, Args: f.Args, Func: f.Func}, Version: f.Version})
	}
	for _, l := range c.Collations {
		collations = append(collations, engine.Collation{Collation: sqlite.Collation{Name: l.Name, Compare: l.Compare}, Version: l.Version})
	}
	return functions, collations
}

// lackFunction returns the members that do not have a function or collation, as their
// lines in the members table say. Where item is "" this node lacks it: nil then says
// that all do.
func (n *Node) lackFunction(kind engine.Kind, name, item string) []string {
	return n.members.Lack(item != "", func(list string) bool {
		if item != "" {
			return engine.Lists(list, item)
		}
		return engine.Names(list, kind, name)
	})
}
