package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mentasystems/colmena/internal/sqlite"
	"github.com/mentasystems/colmena/internal/wire"
)

// A Function of the application, with the version that tells it from another of its
// name. The same is meant by Collation.
type Function struct {
	sqlite.Function
	Version string
}

// Collation is an order of texts.
type Collation struct {
	sqlite.Collation
	Version string
}

// Library is what the application adds to SQL on this node. It does not change. Reads
// use it as it is. A write uses only what every node of the cluster has, and its entry
// says what it used: no replica computes with another version.
type Library struct {
	functions  []sqlite.Function
	collations []sqlite.Collation
	items      map[string]string // kind and name in lower case; the item
	list       string
	missing    func(kind Kind, name, item string) []string
}

// Kind tells functions from collations.
type Kind byte

// Kinds, as items begin with them.
const (
	KindFunction  Kind = 'f'
	KindCollation Kind = 'c'
)

func (k Kind) String() string {
	if k == KindCollation {
		return "collation"
	}
	return "function"
}

// NewLibrary makes a library. missing returns the nodes of the cluster that lack an
// item; where item is "", this node lacks it, and missing returns nil if all others do
// too. It is called from databases' goroutines and must not block.
func NewLibrary(functions []Function, collations []Collation, missing func(kind Kind, name, item string) []string) *Library {
	l := &Library{items: map[string]string{}, missing: missing}
	for _, f := range functions {
		l.functions = append(l.functions, f.Function)
		name := strings.ToLower(f.Name)
		l.items[string(KindFunction)+name] = fmt.Sprintf("%c %s/%d %s\n", KindFunction, name, f.Args, f.Version)
	}
	for _, c := range collations {
		l.collations = append(l.collations, c.Collation)
		name := strings.ToLower(c.Name)
		l.items[string(KindCollation)+name] = fmt.Sprintf("%c %s %s\n", KindCollation, name, c.Version)
	}
	var all []string
	for _, item := range l.items {
		all = append(all, item)
	}
	slices.Sort(all)
	l.list = strings.Join(all, "")
	return l
}

// List is all items, for Lists and Names: a line for each, its kind, name and version.
func (l *Library) List() string { return l.list }

// Lists reports whether a list holds an item.
func Lists(list, item string) bool { return strings.Contains("\n"+list, "\n"+item) }

// Names reports whether a list holds any version of what has that kind and name.
func Names(list string, kind Kind, name string) bool {
	end := " "
	if kind == KindFunction {
		end = "/"
	}
	return strings.Contains("\n"+list, "\n"+string(kind)+" "+strings.ToLower(name)+end)
}

func (l *Library) item(kind Kind, name string) string {
	if l == nil || len(l.items) == 0 {
		return ""
	}
	return l.items[string(kind)+strings.ToLower(name)]
}

// gate tells whether a write may use an item now.
func (l *Library) gate(item string) error {
	kind, name := parseItem(item)
	if nodes := l.missing(kind, name, item); len(nodes) > 0 {
		return &NotReadyError{Name: name, Missing: nodes}
	}
	return nil
}

func parseItem(item string) (kind Kind, name string) {
	name, _, _ = strings.Cut(item[2:], " ")
	name, _, _ = strings.Cut(name, "/")
	return Kind(item[0]), name
}

// A NotReadyError refuses a write that needs a function or collation some nodes lack,
// or have in another version. Nothing was applied.
type NotReadyError struct {
	Name    string
	Missing []string
}

func (e *NotReadyError) Error() string {
	return fmt.Sprintf("%s is not there in the same version on %s", e.Name, strings.Join(e.Missing, ", "))
}

// install gives a connection the library. admit is asked before a statement gets a
// collation; nil admits all.
func (l *Library) install(c *sqlite.Conn, admit func(name string) bool) error {
	if l == nil {
		return nil
	}
	for _, f := range l.functions {
		if err := c.CreateFunction(f); err != nil {
			return fmt.Errorf("function %s: %w", f.Name, err)
		}
	}
	if len(l.collations) == 0 {
		return nil
	}
	return c.OfferCollations(l.collations, admit)
}

// use gives an executor's connection the library.
func (x *executor) use(l *Library) error {
	x.policy.lib = l
	if x.policy.reader {
		return l.install(x.conn, nil)
	}
	return l.install(x.conn, x.admitCollation)
}

// admitCollation is asked when a statement is compiled that needs a collation SQLite
// does not have yet. The authorizer is not told of collations, so one that a write may
// not use must not be there when the write is compiled.
func (x *executor) admitCollation(name string) bool {
	if x.policy.trusted {
		return true
	}
	err := x.policy.lib.gate(x.policy.lib.item(KindCollation, name))
	if err != nil {
		x.policy.facts.notReady = err
	}
	return err == nil
}

// beginUnit forgets what was used before.
func (x *executor) beginUnit() {
	x.needs = x.needs[:0]
	x.conn.ForgetCalls()
}

// withdraw takes the collations away that a write may not use any more, or never
// could: a replayed entry brought them.
func (x *executor) withdraw() (err error) {
	l := x.policy.lib
	if l == nil || x.policy.reader || len(l.collations) == 0 {
		return nil
	}
	x.conn.ActiveCollations(func(name string) {
		if l.gate(l.item(KindCollation, name)) != nil {
			err = errors.Join(err, x.conn.WithdrawCollation(name))
		}
	})
	return err
}

// used notes what a statement of a write used: what its text, or a trigger, view or
// default it reached, calls, and what was called without the authorizer being told, by
// an index, a CHECK or a generated column.
func (x *executor) used(p *prepared) error {
	l := x.policy.lib
	if l == nil || x.policy.reader || x.policy.trusted {
		return nil
	}
	p.uses = append(p.uses, x.policy.facts.uses...) // SQLite has compiled it again
	slices.Sort(p.uses)
	p.uses = slices.Compact(p.uses)
	x.needs = append(x.needs, p.uses...)
	var err error
	x.conn.Calls(func(name string, collation bool) {
		kind := KindFunction
		if collation {
			kind = KindCollation
		}
		item := l.item(kind, name)
		x.needs = append(x.needs, item)
		if err == nil {
			err = l.gate(item)
		}
	})
	return err
}

// unitNeeds is what the unit's entry says it used.
func (x *executor) unitNeeds() string {
	if len(x.needs) == 0 {
		return ""
	}
	slices.Sort(x.needs)
	return strings.Join(slices.Compact(x.needs), "")
}

// explain makes a NotReadyError of SQLite's word that there is no such function or
// collation, if other nodes have it.
func (x *executor) explain(err error) error {
	if err == nil || x.policy.lib == nil || x.policy.reader {
		return err
	}
	kind, name := lacking(err)
	if name == "" {
		return err
	}
	if nodes := x.policy.lib.missing(kind, strings.ToLower(name), ""); len(nodes) > 0 {
		return &NotReadyError{Name: name, Missing: nodes}
	}
	return err
}

// lacking is the function or collation of which SQLite says that there is none.
func lacking(err error) (kind Kind, name string) {
	var e *sqlite.Error
	if !errors.As(err, &e) || e.Code != sqlite.Generic || strings.HasPrefix(e.Msg, "SQL logic error: function ") {
		return 0, ""
	}
	for _, m := range []struct {
		kind Kind
		text string
	}{{KindFunction, "no such function: "}, {KindFunction, "unknown function: "}, {KindCollation, "no such collation sequence: "}} {
		if _, rest, ok := strings.Cut(e.Msg, m.text); ok {
			if end := strings.IndexAny(rest, " ()\n"); end >= 0 {
				rest = rest[:end]
			}
			return m.kind, rest
		}
	}
	return 0, ""
}

// A LackError says what this node lacks to apply an entry. The replica is not damaged:
// it goes on when the node is started with it.
type LackError struct {
	Kind       Kind
	Name       string
	Want, Have string // name and version, or ""
}

func (e *LackError) Error() string {
	have := "which this node does not have"
	if e.Have != "" {
		have = "and this node has " + e.Have
	}
	return fmt.Sprintf("it needs the %v %s, %s: start the node with it in its Config", e.Kind, e.Want, have)
}

// check reports what of an entry's needs this node does not have.
func (l *Library) check(needs string) error {
	for item := range strings.Lines(needs) {
		if len(item) < 4 {
			return fmt.Errorf("an entry needs %q, which is no function or collation", item)
		}
		kind, name := parseItem(item)
		if have := l.item(kind, name); have != item {
			e := &LackError{Kind: kind, Name: name, Want: strings.TrimSpace(item[2:])}
			if have != "" {
				e.Have = strings.TrimSpace(have[2:])
			}
			return e
		}
	}
	return nil
}

// Verify is the function Verify for files that may use the library. What this node
// lacks cannot be looked through, and does not speak against the file.
func (l *Library) Verify(path string) (m wire.Mark, incarnation uint64, err error) {
	return verify(path, l)
}
