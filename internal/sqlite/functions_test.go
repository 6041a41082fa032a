package sqlite

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
)

func memory(t *testing.T) *Conn {
	t.Helper()
	c, err := Open("", Options{Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// one is the first column of a query's only row, as typeof|quote.
func one(t *testing.T, c *Conn, expr string) (string, error) {
	t.Helper()
	st, _, err := c.Prepare("SELECT typeof(v) || '|' || quote(v) FROM (SELECT " + expr + " AS v)")
	if err != nil {
		return "", err
	}
	defer st.Finalize()
	if _, err := st.Step(); err != nil {
		return "", err
	}
	return st.ColumnText(0), nil
}

func TestFunctionValues(t *testing.T) {
	c := memory(t)
	for name, f := range map[string]func([]any) (any, error){
		"same":     func(a []any) (any, error) { return a[0], nil },
		"kind":     func(a []any) (any, error) { return fmt.Sprintf("%T", a[0]), nil },
		"yes":      func([]any) (any, error) { return true, nil },
		"no":       func([]any) (any, error) { return false, nil },
		"nan":      func([]any) (any, error) { return math.NaN(), nil },
		"nilblob":  func([]any) (any, error) { return []byte(nil), nil },
		"wrong":    func([]any) (any, error) { return struct{}{}, nil },
		"fails":    func(a []any) (any, error) { return nil, errors.New("no good\x00" + strings.Repeat("x", 5000)) },
		"panics":   func([]any) (any, error) { panic("boom") },
		"emptystr": func([]any) (any, error) { return "", nil },
		"huge":     func([]any) (any, error) { return strings.Repeat("x", 2000), nil },
		"count":    func(a []any) (any, error) { return int64(len(a)), nil },
	} {
		args := 1
		if name == "count" {
			args = -1
		}
		if err := c.CreateFunction(Function{Name: name, Args: args, Func: f}); err != nil {
			t.Fatal(err)
		}
	}
	for expr, want := range map[string]string{
		"same(9223372036854775807)": "integer|9223372036854775807",
		"same(-1.5)":                "real|-1.5",
		"same('grüße')":             "text|'grüße'",
		"same('')":                  "text|''",
		"same(x'00ff')":             "blob|X'00FF'",
		"same(x'')":                 "blob|X''",
		"same(NULL)":                "null|NULL",
		"kind(1)":                   "text|'int64'",
		"kind(1.0)":                 "text|'float64'",
		"kind('a')":                 "text|'string'",
		"kind(x'')":                 "text|'[]uint8'",
		"kind(NULL)":                "text|'<nil>'",
		"yes(0)":                    "integer|1",
		"no(0)":                     "integer|0",
		"nan(0)":                    "null|NULL",
		"nilblob(0)":                "null|NULL",
		"emptystr(0)":               "text|''",
		"count()":                   "integer|0",
		"count(1,2,3)":              "integer|3",
		"SAME(same(2))":             "integer|2",
	} {
		if got, err := one(t, c, expr); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", expr, got, err, want)
		}
	}
	for expr, want := range map[string]string{
		"wrong(0)":       "struct {}",
		"fails(0)":       "function fails: no good",
		"panics(0)":      "function panics panicked: boom",
		"same()":         "wrong number of arguments",
		"same(1) OVER()": "may not be used as a window function",
	} {
		if _, err := one(t, c, expr); err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 2000 {
			t.Errorf("%s: %v; want %q", expr, err, want)
		}
	}
	c.Limit(LimitLength, 1000)
	if _, err := one(t, c, "huge(0)"); err == nil || err.(*Error).Code != TooBig {
		t.Errorf("a result that is too long: %v", err)
	}
	c.ForgetCalls()
	if _, err := one(t, c, "same(1) + count()"); err != nil {
		t.Fatal(err)
	}
	called := map[string]bool{}
	c.Calls(func(name string, _ bool) { called[name] = true })
	if len(called) != 2 || !called["same"] || !called["count"] {
		t.Errorf("called were %v", called)
	}
}

func TestFunctionInSchema(t *testing.T) {
	c := memory(t)
	if err := c.DBConfig(ConfigTrustedSchema, false); err != nil {
		t.Fatal(err)
	}
	err := c.CreateFunction(Function{Name: "rev", Args: 1, Func: func(a []any) (any, error) {
		var b strings.Builder
		s, _ := a[0].(string)
		for i := len(s) - 1; i >= 0; i-- {
			b.WriteByte(s[i])
		}
		return b.String(), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	err = c.Exec(`CREATE TABLE t(a TEXT CHECK(rev(a) <> 'no'), b AS (rev(a)), s AS (rev(b)) STORED);
		CREATE INDEX i ON t(rev(a)); CREATE VIEW v AS SELECT rev(a) AS r FROM t;
		CREATE TABLE log(x); CREATE TRIGGER tr AFTER INSERT ON t BEGIN INSERT INTO log VALUES(rev(new.a)); END;
		INSERT INTO t(a) VALUES('abc'), ('xyz')`)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Exec("INSERT INTO t(a) VALUES('on')"); err == nil || err.(*Error).Extended != ConstraintCheck {
		t.Errorf("CHECK: %v", err)
	}
	for q, want := range map[string]string{
		"(SELECT a FROM t INDEXED BY i WHERE rev(a) = 'cba')": "text|'abc'",
		"(SELECT b || s FROM t WHERE a = 'abc')":              "text|'cbaabc'",
		"(SELECT group_concat(x) FROM log)":                   "text|'cba,zyx'",
		"(SELECT max(r) FROM v)":                              "text|'zyx'",
	} {
		if got, err := one(t, c, q); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", q, got, err, want)
		}
	}
}

func TestCollations(t *testing.T) {
	c := memory(t)
	admitted, asked := false, 0
	err := c.OfferCollations([]Collation{
		{Name: "backwards", Compare: func(a, b string) int { return 7 * strings.Compare(b, a) }},
		{Name: "panics", Compare: func(a, b string) int { panic("boom") }},
	}, func(string) bool { asked++; return admitted })
	if err != nil {
		t.Fatal(err)
	}
	const sorted = "(SELECT group_concat(v) FROM (SELECT column1 AS v FROM (VALUES('a'), ('c'), ('b')) ORDER BY v COLLATE Backwards))"
	for range 2 {
		admitted = false
		if _, err := one(t, c, sorted); err == nil || !strings.Contains(err.Error(), "no such collation sequence") || asked == 0 {
			t.Errorf("a collation that was not admitted: %v", err)
		}
		admitted = true
		c.ForgetCalls()
		if got, err := one(t, c, sorted); err != nil || got != "text|'c,b,a'" {
			t.Errorf("%s, %v", got, err)
		}
		n := 0
		c.Calls(func(name string, collation bool) {
			if n++; name != "backwards" || !collation {
				t.Errorf("%s was called", name)
			}
		})
		active := ""
		c.ActiveCollations(func(name string) { active += name })
		if n != 1 || active != "backwards" {
			t.Errorf("%d called, active %q", n, active)
		}
		if err := c.WithdrawCollation("backwards"); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Exec("CREATE TABLE t(a TEXT UNIQUE COLLATE panics); INSERT INTO t VALUES('a')"); err != nil {
		t.Fatal(err)
	}
	if err := c.Exec("INSERT INTO t VALUES('b')"); err == nil || !strings.Contains(err.Error(), "collation panics panicked: boom") {
		t.Errorf("a collation that panics: %v", err)
	}
	if got, err := one(t, c, "1"); err != nil || got != "integer|1" {
		t.Errorf("afterwards: %s, %v", got, err)
	}
}

// A prepared statement must not outlive the collation it was compiled with.
func TestWithdrawExpiresStatements(t *testing.T) {
	c := memory(t)
	admitted := true
	if err := c.OfferCollations([]Collation{{Name: "x", Compare: strings.Compare}}, func(string) bool { return admitted }); err != nil {
		t.Fatal(err)
	}
	if err := c.Exec("CREATE TABLE t(a TEXT COLLATE x)"); err != nil {
		t.Fatal(err)
	}
	st, _, err := c.Prepare("SELECT 1 FROM t ORDER BY a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Step(); err != nil {
		t.Fatal(err)
	}
	if err := st.Reset(); err != nil {
		t.Fatal(err)
	}
	admitted = false
	if err := c.WithdrawCollation("x"); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Step(); err == nil || !strings.Contains(err.Error(), "no such collation sequence: x") {
		t.Errorf("the statement goes on without its collation: %v", err)
	}
}

func TestFunctionsAreFreed(t *testing.T) {
	calls := 0
	for range 200 {
		c, err := Open("", Options{Memory: true})
		if err != nil {
			t.Fatal(err)
		}
		err = errors.Join(
			c.CreateFunction(Function{Name: "f", Args: 0, Func: func([]any) (any, error) { calls++; return int64(1), nil }}),
			c.OfferCollations([]Collation{{Name: "x", Compare: strings.Compare}}, nil),
			c.Exec("SELECT f() WHERE 'a' < 'b' COLLATE x"), c.Close())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.CreateFunction(Function{Name: "f", Func: func([]any) (any, error) { return nil, nil }}); err == nil {
			t.Fatal("a closed connection takes functions")
		}
	}
	if calls != 200 {
		t.Errorf("%d calls", calls)
	}
	if p := callbacks.conns.Load(); p != nil && len(*p) > 64 {
		t.Errorf("%d connections are still registered", len(*p))
	}
}

func TestBuiltIn(t *testing.T) {
	functions, collations, err := BuiltIn()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"random", "upper", "count", "row_number", "->", "current_timestamp", "likely", "json_extract"} {
		if !functions[name] {
			t.Errorf("%s is not listed", name)
		}
	}
	if !collations["nocase"] || !collations["binary"] || !collations["rtrim"] {
		t.Errorf("collations %v", collations)
	}
}
