package colmena

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/membership"
	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
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

const (
	maxFunctions       = 128 // and as many collations
	maxFunctionArgs    = 100
	maxFunctionVersion = 64
)

var functionName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,63}$`)

type builtIn struct {
	functions, collations map[string]bool
	err                   error
}

var sqliteBuiltIn = sync.OnceValue(func() (b builtIn) {
	b.functions, b.collations, b.err = sqlite.BuiltIn()
	return b
})

func (c *Config) checkFunctions(bad func(string, ...any)) {
	if len(c.Functions)+len(c.Collations) == 0 {
		return
	}
	b := sqliteBuiltIn()
	if b.err != nil {
		bad("Functions: SQLite's own cannot be listed: %w", b.err)
		return
	}
	if len(c.Functions) > maxFunctions || len(c.Collations) > maxFunctions {
		bad("Functions and Collations may have %d each, not %d and %d", maxFunctions, len(c.Functions), len(c.Collations))
	}
	check := func(at, name, version string, own, seen map[string]bool) {
		switch lower := strings.ToLower(name); {
		case !functionName.MatchString(name):
			bad("%s: name %q: a name has 1 to 64 letters, digits and '_', and does not begin with a digit", at, name)
		case own[lower] || strings.HasPrefix(lower, "sqlite_") || strings.HasPrefix(lower, "colmena_"):
			bad("%s: %q is SQLite's or colmena's own name: choose another", at, name)
		case seen[lower]:
			bad("%s: %q is there twice: use Args -1 for several numbers of arguments", at, name)
		default:
			seen[lower] = true
		}
		control := func(r rune) bool { return r < ' ' || r == 0x7f }
		if version == "" || len(version) > maxFunctionVersion || !utf8.ValidString(version) || strings.ContainsFunc(version, control) {
			bad("%s: %q: Version %q must have 1 to %d bytes of text", at, name, version, maxFunctionVersion)
		}
	}
	seen := map[string]bool{}
	for i, f := range c.Functions {
		at := fmt.Sprintf("Functions[%d]", i)
		check(at, f.Name, f.Version, b.functions, seen)
		if f.Func == nil {
			bad("%s: %q has no Func", at, f.Name)
		}
		if f.Args < -1 || f.Args > maxFunctionArgs {
			bad("%s: %q: Args %d is not between -1 and %d", at, f.Name, f.Args, maxFunctionArgs)
		}
	}
	seen = map[string]bool{}
	for i, l := range c.Collations {
		at := fmt.Sprintf("Collations[%d]", i)
		check(at, l.Name, l.Version, b.collations, seen)
		if l.Compare == nil {
			bad("%s: %q has no Compare", at, l.Name)
		}
	}
}

// newLibrary gives the engine what the configuration adds to SQL.
func (n *Node) newLibrary() *engine.Library {
	var functions []engine.Function
	for _, f := range n.cfg.Functions {
		functions = append(functions, engine.Function{Function: sqlite.Function{Name: f.Name, Args: f.Args, Func: f.Func}, Version: f.Version})
	}
	var collations []engine.Collation
	for _, c := range n.cfg.Collations {
		collations = append(collations, engine.Collation{Collation: sqlite.Collation{Name: c.Name, Compare: c.Compare}, Version: c.Version})
	}
	return engine.NewLibrary(functions, collations, n.lackFunction)
}

// lackFunction returns the members that do not have a function or collation, as their
// lines in the members table say. One without a line has nothing, but for this node
// itself. Where item is "" this node lacks it: nil then says that all do.
func (n *Node) lackFunction(kind engine.Kind, name, item string) []string {
	here, some := n.id.NodeID, item != ""
	have := func(list string) bool {
		if item != "" {
			return engine.Lists(list, item)
		}
		return engine.Names(list, kind, name)
	}
	var lack []string
	if item == "" {
		lack = append(lack, here)
	}
	for _, m := range n.dbs.Members() {
		switch {
		case m.ID == here:
		case have(m.Functions):
			some = true
		default:
			lack = append(lack, m.ID)
		}
	}
	for _, s := range n.servers() {
		if id := string(s.ID); id != here {
			if _, ok := n.dbs.Member(id); !ok {
				lack = append(lack, id)
			}
		}
	}
	if !some {
		return nil
	}
	return lack
}

// refreshed reports whether a member's line must be written anew though the node is at
// its old address: it was started with other functions, or by another build.
func (n *Node) refreshed(c memberChange) (membership.Record, bool) {
	old, ok := n.dbs.Member(c.ID)
	if !ok || c.Kind != changeJoin || old.Incarnation != c.Incarnation {
		return old, false
	}
	now := old
	now.Functions, now.Engine, now.FormatMin, now.FormatMax = c.Functions, c.Engine, c.FormatMin, c.FormatMax
	return old, now != old
}

// checkFunctionList bounds what a node says of itself.
func checkFunctionList(list string) error {
	if len(list) > wire.MaxNeedsBytes || !utf8.ValidString(list) {
		return &wire.Error{Code: wire.ErrTooLarge, Msg: "the list of a node's functions is too long, or no text"}
	}
	return nil
}
