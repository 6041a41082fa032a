package engine

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mentasystems/colmena/internal/sqlite"
)

func TestLibraryIsChecked(t *testing.T) {
	function := func(name string, args int, version string) Function {
		return Function{sqlite.Function{Name: name, Args: args, Func: func([]any) (any, error) { return nil, nil }}, version}
	}
	collation := func(name, version string) Collation {
		return Collation{sqlite.Collation{Name: name, Compare: strings.Compare}, version}
	}
	without := function("without", 1, "1")
	without.Func = nil
	orderless := collation("orderless", "1")
	orderless.Compare = nil
	long := strings.Repeat("x", 64)
	many := make([]Function, maxFunctions+1)
	for i := range many {
		many[i] = function(fmt.Sprint("f", i), 0, "1")
	}
	for _, tt := range []struct {
		name       string
		functions  []Function
		collations []Collation
		want       []string // of each report a part
	}{
		{"nothing", nil, nil, nil},
		{"good ones", []Function{function("a", -1, "1"), function(long, maxFunctionArgs, long)}, []Collation{collation("a", "1")}, nil},
		{"SQLite's own", []Function{function("Random", 0, "1")}, []Collation{collation("nocase", "1")}, []string{`Functions[0]: "Random"`, `Collations[0]: "nocase"`}},
		{"reserved", []Function{function("sqlite_x", 0, "1"), function("COLMENA_x", 0, "1")}, nil, []string{"Functions[0]", "Functions[1]"}},
		{"no names", []Function{function("a b", 0, "1"), function("1a", 0, "1"), function("", 0, "1"), function(long+"x", 0, "1")}, nil,
			[]string{"Functions[0]: name", "Functions[1]: name", "Functions[2]: name", "Functions[3]: name"}},
		{"twice", []Function{function("a", 0, "1"), function("A", 1, "1")}, []Collation{collation("a", "1"), collation("a", "2")}, []string{"Functions[1]", "Collations[1]"}},
		{"versions", []Function{function("a", 0, ""), function("b", 0, "1\n2"), function("c", 0, "\xff"), function("d", 0, long+"x")}, nil,
			[]string{"Functions[0]", "Functions[1]", "Functions[2]", "Functions[3]"}},
		{"arguments", []Function{function("a", -2, "1"), function("b", maxFunctionArgs+1, "1")}, nil, []string{"Args -2", "Args 101"}},
		{"no code", []Function{without}, []Collation{orderless}, []string{"no Func", "no Compare"}},
		{"too many", many, nil, []string{"128 each, not 129"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			CheckLibrary(tt.functions, tt.collations, func(format string, args ...any) { got = append(got, fmt.Sprintf(format, args...)) })
			if len(got) != len(tt.want) {
				t.Fatalf("reports\n%s", strings.Join(got, "\n"))
			}
			for i := range got {
				if !strings.Contains(got[i], tt.want[i]) {
					t.Errorf("%s; want %q", got[i], tt.want[i])
				}
			}
		})
	}
}
