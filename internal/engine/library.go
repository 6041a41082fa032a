package engine

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/mentasystems/colmena/internal/sqlite"
)

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

// CheckLibrary reports everything that speaks against a library of these, one call of bad for each. They are named by where they stand:
// "Functions[1]", "Collations[0]".
func CheckLibrary(functions []Function, collations []Collation, bad func(format string, args ...any)) {
	if len(functions)+len(collations) == 0 {
		return
	}
	own := sqliteBuiltIn()
	if own.err != nil {
		bad("Functions: SQLite's own cannot be listed: %w", own.err)
		return
	}
	if len(functions) > maxFunctions || len(collations) > maxFunctions {
		bad("Functions and Collations may have %d each, not %d and %d", maxFunctions, len(functions), len(collations))
	}
	seen := map[string]bool{}
	for i, f := range functions {
		at := fmt.Sprintf("Functions[%d]", i)
		checkName(at, f.Name, own.functions, seen, bad)
		checkVersion(at, f.Name, f.Version, bad)
		if f.Func == nil {
			bad("%s: %q has no Func", at, f.Name)
		}
		if f.Args < -1 || f.Args > maxFunctionArgs {
			bad("%s: %q: Args %d is not between -1 and %d", at, f.Name, f.Args, maxFunctionArgs)
		}
	}
	seen = map[string]bool{}
	for i, c := range collations {
		at := fmt.Sprintf("Collations[%d]", i)
		checkName(at, c.Name, own.collations, seen, bad)
		checkVersion(at, c.Name, c.Version, bad)
		if c.Compare == nil {
			bad("%s: %q has no Compare", at, c.Name)
		}
	}
}

func checkName(at, name string, own, seen map[string]bool, bad func(string, ...any)) {
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
}

func checkVersion(at, name, version string, bad func(string, ...any)) {
	control := func(r rune) bool { return r < ' ' || r == 0x7f }
	if version == "" || len(version) > maxFunctionVersion || !utf8.ValidString(version) || strings.ContainsFunc(version, control) {
		bad("%s: %q: Version %q must have 1 to %d bytes of text", at, name, version, maxFunctionVersion)
	}
}
