package colmena_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/mentasystems/colmena"

// level says where a room stands. Arrows go down only, and rooms of one level do not
// import each other.
func level(pkg string) int {
	switch pkg {
	case "internal/sqlite", "internal/wire", "internal/durable", "internal/lifecycle", "internal/membership", "internal/sqltext", "internal/times",
		"internal/requestid", "internal/promtext", "internal/hooks", "internal/ownwrites", "internal/samecontent":
		return 0
	case "internal/engine", "internal/transport", "internal/rpc", "internal/logstore", "internal/snapshot", "internal/pragma", "internal/values", "internal/identity",
		"internal/nudge":
		return 1
	case "internal/interactive", "internal/freshness", "internal/rowstream", "internal/outbox", "internal/catalogue", "internal/plainfile", "internal/members",
		"internal/consensus", "internal/leadership", "internal/delivery", "internal/handlers", "internal/errwire", "internal/reading", "internal/intake",
		"internal/dbconn":
		return 2
	case ".":
		return 3
	case "backup", "backup/s3", "jobs", "lan", "cli", "colmenatest", "internal/testcluster", "internal/faults":
		return 4
	}
	if strings.HasPrefix(pkg, "examples/") || strings.HasPrefix(pkg, "cmd/") {
		return 5
	}
	return -1
}

// confined lists modules that only some rooms may import. Tests may compare with
// plain SQLite and run raft against a room.
var confined = map[string][]string{
	"modernc.org/":                     {"internal/sqlite", "examples/cluster"}, // the example compares with plain SQLite
	"github.com/hashicorp/raft":        {"internal/consensus", "internal/logstore", "internal/snapshot", "internal/transport"},
	"github.com/hashicorp/raft-boltdb": {"internal/logstore"},
	"go.etcd.io/bbolt":                 {"internal/logstore"},
	"github.com/hashicorp/yamux":       {"internal/rpc"},
	"github.com/hashicorp/go-hclog":    {"internal/transport", "internal/logstore"},
	"github.com/hashicorp/go-msgpack":  {"internal/rpc"},
	"golang.org/x/sys":                 {"internal/durable", "internal/snapshot", "internal/logstore"},
}

func TestImportsGoDownOnly(t *testing.T) {
	rooms := map[string]bool{}
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); file != "." && (strings.HasPrefix(name, ".") || name == "testdata" || isModule(file)) {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(file) != ".go" {
			return nil
		}
		room := path.Clean(filepath.ToSlash(filepath.Dir(file)))
		rooms[room] = true
		checkFile(t, room, file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for room := range rooms {
		if level(room) < 0 {
			t.Errorf("room %s has no place in the house: give it a level", room)
		}
	}
}

// isModule reports whether a directory is a module of its own.
func isModule(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "go.mod"))
	return err == nil
}

func checkFile(t *testing.T, room, file string) {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		t.Fatal(err)
	}
	test := strings.HasSuffix(file, "_test.go")
	for _, spec := range f.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := strings.CutPrefix(imported, module); ok {
			other = strings.TrimPrefix(other, "/")
			if other == "" {
				other = "."
			}
			if other != room && level(other) >= level(room) && !(test && other == "internal/testcluster") && !allowedUp(room, other) {
				t.Errorf("%s imports %s: arrows go down only", file, imported)
			}
			continue
		}
		for prefix, owners := range confined {
			if strings.HasPrefix(imported, prefix) && !test && !contains(owners, room) && !longer(prefix, imported) {
				t.Errorf("%s imports %s, which belongs to %v", file, imported, owners)
			}
		}
	}
}

// allowedUp names the one arrow between rooms of a level: cli may use backup.
func allowedUp(room, other string) bool { return room == "cli" && strings.HasPrefix(other, "backup") }

// longer reports whether a longer prefix than this one covers the import.
func longer(prefix, imported string) bool {
	for p := range confined {
		if len(p) > len(prefix) && strings.HasPrefix(imported, p) {
			return true
		}
	}
	return false
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// hazards is how many ways to lose data DESIGN.md counts.
const hazards = 28

// TestDesignNamesTestsThatExist reads DESIGN.md: each test it names is in the tree, each
// hazard has its paragraph there with a test or the words that it is not built yet, and
// each test named after a hazard is told of.
func TestDesignNamesTestsThatExist(t *testing.T) {
	text, err := os.ReadFile("DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	design := string(text)
	found := testNames(t)
	quoted := regexp.MustCompile("`(Test[A-Z][A-Za-z0-9]*)`")
	told := map[string]bool{}
	for _, m := range quoted.FindAllStringSubmatch(design, -1) {
		told[m[1]] = true
		if !found[m[1]] {
			t.Errorf("DESIGN.md names %s, which is nowhere", m[1])
		}
	}
	for name := range found {
		if strings.HasPrefix(name, "TestHazard") && !told[name] {
			t.Errorf("DESIGN.md does not name %s", name)
		}
	}
	paragraphs := strings.Split(design, "\n\n")
	for i := range hazards {
		paragraph := ""
		for _, p := range paragraphs {
			if strings.HasPrefix(p, fmt.Sprintf("**H%d ", i+1)) {
				paragraph += p
			}
		}
		switch own := fmt.Sprintf("`TestHazard%02d", i+1); {
		case paragraph == "":
			t.Errorf("hazard H%d has no paragraph", i+1)
		case !strings.Contains(paragraph, own) && !strings.Contains(strings.ReplaceAll(paragraph, "\n", " "), "not built yet"):
			t.Errorf("hazard H%d has no test, and is not said to be not built yet", i+1)
		}
	}
}

// testNames are the tests of all packages.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	declared := regexp.MustCompile(`(?m)^func (Test[A-Z][A-Za-z0-9]*)\(`)
	found := map[string]bool{}
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(file, "_test.go") {
			return err
		}
		b, err := os.ReadFile(file)
		for _, m := range declared.FindAllSubmatch(b, -1) {
			found[string(m[1])] = true
		}
		return err
	})
	if err != nil || len(found) == 0 {
		t.Fatalf("%d tests, %v", len(found), err)
	}
	return found
}
