package engine

import (
	"fmt"
	"strings"

	"github.com/mentasystems/colmena/internal/sqlite"
)

// A NonDeterministicError refuses a statement whose own text would compute
// something else on another replica. Nothing was applied.
type NonDeterministicError struct {
	Function string // as SQLite names it
	Offset   int    // byte of the statement's text
}

func (e *NonDeterministicError) Error() string {
	return fmt.Sprintf("the statement calls %s at byte %d", e.Function, e.Offset)
}

// A RefusedError refuses a statement that would change or escape one replica, or
// that asks for something a replicated database cannot give. Nothing was applied.
type RefusedError struct {
	What   string // what was refused
	Advice string // what to do instead
}

func (e *RefusedError) Error() string { return e.What + " is refused: " + e.Advice }

// facts is what the authorizer saw while a statement was prepared.
type facts struct {
	refused  *RefusedError
	schema   bool // changes the schema
	pragma   bool
	pages    bool // reads where a table's first page is
	deferred bool // sets defer_foreign_keys
	analyze  bool
	stat     string   // sqlite_stat table written to
	query    bool     // runs a SELECT
	created  bool     // creates a table
	calls    []call   // calls of functions that could be the statement's own text
	uses     []string // items of the library
	notReady error    // a *NotReadyError
}

type call struct {
	function string
	nth      int // its position among all such calls of the statement
}

// Functions whose value is not a function of their arguments.
var (
	chanceFunctions = set("random", "randomblob")
	clockKeywords   = set("current_timestamp", "current_time", "current_date")
	// clockFunctions read the clock when their time argument is 'now' or absent;
	// the value is the position of that argument.
	clockFunctions = map[string]int{"date": 0, "time": 0, "datetime": 0, "julianday": 0, "unixepoch": 0, "strftime": 1, "timediff": 0}
	// hostFunctions tell replicas of one cluster apart, whatever calls them.
	hostFunctions = set("sqlite_version", "sqlite_source_id", "sqlite_compileoption_used", "sqlite_compileoption_get",
		"sqlite_offset", "load_extension", "total_changes", "sqlite_log", "fts5_source_id")
)

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

// Pragmas a unit may run on the writer. Those with an argument that changes
// something change the file, and so do it on every replica alike; the connection's
// own settings are the driver's business and never get here.
var (
	writePragmas = set("user_version", "application_id", "defer_foreign_keys")
	readPragmas  = set("table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list",
		"foreign_key_check", "integrity_check", "quick_check", "database_list", "collation_list", "function_list", "module_list",
		"pragma_list", "compile_options", "user_version", "application_id", "schema_version", "data_version", "page_count",
		"page_size", "freelist_count", "encoding", "journal_mode", "auto_vacuum", "locking_mode", "max_page_count",
		"case_sensitive_like", "ignore_check_constraints", "legacy_alter_table", "trusted_schema", "read_uncommitted",
		"reverse_unordered_selects", "threads", "secure_delete", "checkpoint_fullfsync", "fullfsync", "automatic_index", "cell_size_check")
	// ownPragmas are what a connection of database/sql keeps and answers by itself: on the
	// engine's connections they have other values.
	ownPragmas = set("foreign_keys", "recursive_triggers", "defer_foreign_keys", "query_only", "busy_timeout", "cache_size", "synchronous",
		"temp_store", "mmap_size", "wal_autocheckpoint", "journal_size_limit", "analysis_limit")
)

// internalTable is where a database file states its own mark. Its prefix is
// SQLite's own: no statement can drop, alter or index it, and tools leave it alone.
const internalTable = "sqlite_colmena"

// policy judges what statements may do on one connection. It belongs to the
// connection's goroutine.
type policy struct {
	running bool // a statement is being run, not compiled for the first time
	trusted bool // the engine's own statements and replayed ones: everything goes
	reader  bool
	session bool // in an interactive transaction
	lib     *Library
	facts   facts
	calls   int
	deny    int // number of the call to deny while probing, 0 none
}

func (p *policy) authorize(a sqlite.Action) sqlite.Verdict {
	p.note(a)
	if p.trusted {
		return sqlite.VerdictOK
	}
	if a.Code == sqlite.ActionFunction {
		return p.function(strings.ToLower(a.Arg2))
	}
	if r := p.refusal(a); r != nil {
		p.facts.refused = r
		return sqlite.VerdictDeny
	}
	return sqlite.VerdictOK
}

// note gathers what a trusted statement is asked too, because a replica that
// replays must count rows as the leader did.
func (p *policy) note(a sqlite.Action) {
	switch a.Code {
	case sqlite.ActionInsert, sqlite.ActionUpdate, sqlite.ActionDelete:
		if strings.HasPrefix(a.Arg1, "sqlite_stat") {
			p.facts.stat = a.Arg1
		}
	case sqlite.ActionPragma:
		p.facts.pragma = true
		p.facts.deferred = p.facts.deferred || strings.EqualFold(a.Arg1, "defer_foreign_keys") && a.Arg2 != ""
	case sqlite.ActionAnalyze:
		p.facts.analyze = true
	case sqlite.ActionSelect:
		p.facts.query = true
	case sqlite.ActionRead:
		p.facts.pages = p.facts.pages || a.Arg2 == "rootpage" && strings.HasPrefix(a.Arg1, "sqlite_")
	case sqlite.ActionCreateTable, sqlite.ActionCreateIndex, sqlite.ActionCreateView, sqlite.ActionCreateTrigger, sqlite.ActionCreateVTable,
		sqlite.ActionDropTable, sqlite.ActionDropIndex, sqlite.ActionDropView, sqlite.ActionDropTrigger, sqlite.ActionDropVTable,
		sqlite.ActionAlterTable, sqlite.ActionReindex:
		p.facts.schema = true // these keep the sqlite_stat tables on their own account
		p.facts.created = p.facts.created || a.Code == sqlite.ActionCreateTable
	case sqlite.ActionFunction:
		if name := strings.ToLower(a.Arg2); volatile(name) {
			p.calls++
			p.facts.calls = append(p.facts.calls, call{name, p.calls})
		} else if item := p.lib.item(KindFunction, name); item != "" {
			p.facts.uses = append(p.facts.uses, item)
		}
	}
}

func (p *policy) function(name string) sqlite.Verdict {
	switch {
	case name == "load_extension":
		p.facts.refused = &RefusedError{What: "load_extension", Advice: "extensions would escape the replica"}
	case name == "total_changes" && p.reader:
		p.facts.refused = &RefusedError{What: "the function total_changes", Advice: "connections of the node are shared, so it would not count your changes alone: add up the rows affected by each statement"}
	case hostFunctions[name] && !p.reader:
		p.facts.refused = &RefusedError{What: "the function " + name + " in a write", Advice: "its value differs between replicas; compute it in a query and pass it as a parameter"}
	case p.deny != 0 && p.deny == p.calls:
	default:
		if item := p.lib.item(KindFunction, name); item != "" && !p.reader {
			if p.facts.notReady = p.lib.gate(item); p.facts.notReady != nil {
				return sqlite.VerdictDeny
			}
		}
		return sqlite.VerdictOK
	}
	return sqlite.VerdictDeny
}

// volatile reports whether a function's value may not follow from its arguments.
func volatile(name string) bool {
	_, clock := clockFunctions[name]
	return clock || clockKeywords[name] || chanceFunctions[name]
}

func (p *policy) refusal(a sqlite.Action) *RefusedError {
	if p.running && a.Code != sqlite.ActionRead && a.Code != sqlite.ActionInsert && a.Code != sqlite.ActionUpdate && a.Code != sqlite.ActionDelete {
		return nil // of a virtual table's own statements, or judged when first compiled
	}
	switch a.Code {
	case sqlite.ActionAttach, sqlite.ActionDetach:
		return &RefusedError{"ATTACH and DETACH", "open the other database with Node.OpenDB; a file outside the cluster can be read with its own connection"}
	case sqlite.ActionTransaction:
		return &RefusedError{a.Arg1 + " inside a statement string", "use BeginTx, or a multi-statement string, which is atomic"}
	case sqlite.ActionSavepoint:
		switch reserved := strings.HasPrefix(strings.ToLower(a.Arg2), reservedPrefix); {
		case p.session && !reserved:
			return nil
		case p.session:
			return &RefusedError{"the savepoint " + a.Arg2, "names that begin with " + reservedPrefix + " are the engine's own"}
		}
		return &RefusedError{"SAVEPOINT outside a transaction", "use it inside a transaction begun with BeginTx"}
	case sqlite.ActionCreateTempTable, sqlite.ActionCreateTempIndex, sqlite.ActionCreateTempView, sqlite.ActionCreateTempTrigger,
		sqlite.ActionDropTempTable, sqlite.ActionDropTempIndex, sqlite.ActionDropTempView, sqlite.ActionDropTempTrigger:
		return errTemp
	case sqlite.ActionCreateVTable:
		if ownState(strings.ToLower(a.Arg2)) { // under another name it would show the same
			return &RefusedError{"a virtual table of " + a.Arg2, "it tells replicas apart; " + strings.ToLower(a.Arg2) + " itself can be read in a query"}
		}
	case sqlite.ActionRead:
		table := strings.ToLower(a.Arg1)
		if name, is := strings.CutPrefix(table, "pragma_"); is && ownPragmas[name] {
			return &RefusedError{"reading " + a.Arg1, "send PRAGMA " + name + " by itself: the connection answers it"}
		}
		if !p.reader && ownState(table) {
			return &RefusedError{"reading " + a.Arg1 + " in a write", "it tells replicas apart; read it in a query and pass what is needed as a parameter"}
		}
	case sqlite.ActionPragma:
		return p.pragma(strings.ToLower(a.Arg1), a.Arg2)
	case sqlite.ActionInsert, sqlite.ActionUpdate, sqlite.ActionDelete, sqlite.ActionDropTable, sqlite.ActionAlterTable:
		if a.Code == sqlite.ActionInsert && a.Database == "temp" { // CREATE TABLE temp.x: whatever is made there is first a row of its schema
			return errTemp
		}
		if strings.EqualFold(a.Arg1, internalTable) || strings.EqualFold(a.Arg2, internalTable) {
			return &RefusedError{"a change of " + internalTable, "it holds the replica's own position"}
		}
	}
	return nil
}

var errTemp = &RefusedError{"a TEMP table, view, index or trigger", "it would live on one replica's connection only; create an ordinary one, or keep the rows in the application"}

// ownState reports whether a table shows what may differ between replicas: the
// internal one, pages, or what a pragma tells of connection and file.
func ownState(table string) bool {
	switch table {
	case internalTable, "dbstat", "sqlite_dbpage", "sqlite_stmt", "bytecode", "tables_used", "sqlite_memstat", "completion":
		return true
	}
	name, isPragma := strings.CutPrefix(table, "pragma_")
	return isPragma && !pragmaTakesName[name]
}

func (p *policy) pragma(name, arg string) *RefusedError {
	switch {
	case pragmaTakesName[name], !p.reader && writePragmas[name]:
		return nil
	case ownPragmas[name]:
		return &RefusedError{"PRAGMA " + name + " among other statements", "it belongs to the connection: send it by itself, or before them"}
	case p.reader && readPragmas[name] && arg == "":
		return nil
	}
	if arg == "" {
		return &RefusedError{"PRAGMA " + name, "it is not known to be harmless on a replica"}
	}
	return &RefusedError{"PRAGMA " + name + "=" + arg, "it would set this replica apart from the others"}
}

// pragmaTakesName lists pragmas whose argument names an object and sets nothing.
var pragmaTakesName = set("table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list",
	"foreign_key_check", "integrity_check", "quick_check")

// judge completes the verdict once a statement has been prepared.
func (p *policy) judge(k kind) error {
	f := &p.facts
	if f.refused != nil {
		return f.refused
	}
	if f.notReady != nil {
		return f.notReady
	}
	if k == kindVacuum {
		return &RefusedError{"VACUUM", "it would number rows and pages anew on one replica; for a compact copy use Node.CopyTo"}
	}
	return p.judgeReach(k)
}

// judgeReach is the part of judge that depends on the schema around a statement: on its
// views and triggers. A statement that SQLite compiled again as it ran is judged again.
func (p *policy) judgeReach(k kind) error {
	f := &p.facts
	if f.pages && !p.reader && (k != kindSchema || f.query && f.created) { // CREATE TABLE AS SELECT keeps what it reads
		return &RefusedError{"reading rootpage in a write", "pages are placed differently on every replica"}
	}
	if f.stat != "" && !f.analyze && !f.schema {
		return &RefusedError{"a change of " + f.stat, "run ANALYZE"}
	}
	return nil
}

// computes reports whether the statement may evaluate calls in its own text. A
// change of the schema stores them, in a DEFAULT say, where they are pinned when they
// run; only CREATE TABLE AS SELECT evaluates some at once.
func (f *facts) computes() bool {
	return !f.schema || f.query && f.created
}

// begin forgets the facts of the former statement.
func (p *policy) begin() {
	p.facts, p.calls, p.deny = facts{calls: p.facts.calls[:0], uses: p.facts.uses[:0]}, 0, 0
}

// ownCall finds the first call in the statement's own text whose value is not a
// function of its arguments. SQLite tells own text from schema: it gives an offset
// for a denied expression unless the expression comes from a DEFAULT, trigger, view
// or other stored definition. probe prepares the statement again with the n-th call
// denied and returns the error's offset.
func ownCall(sql string, calls []call, probe func(nth int) int) *NonDeterministicError {
	for _, c := range calls {
		off := probe(c.nth)
		if off < 0 || off >= len(sql) || !tokenAt(sql, off, c.function) {
			continue
		}
		if pos, clock := clockFunctions[c.function]; clock && !readsClock(sql[off+len(c.function):], pos) {
			continue
		}
		return &NonDeterministicError{Function: c.function, Offset: off}
	}
	return nil
}

func tokenAt(sql string, off int, name string) bool {
	s := sql[off:]
	if len(s) >= len(name) && strings.EqualFold(s[:len(name)], name) {
		return true
	}
	// A quoted function name is still a call.
	return len(s) > len(name)+1 && strings.ContainsRune("\"`[", rune(s[0])) && strings.EqualFold(s[1:1+len(name)], name)
}

// readsClock looks at the argument list that follows a date function's name: is
// the time argument absent, or is any argument the literal 'now'? An argument that
// is 'now' only at run time is pinned like every other, so this errs on the side of
// letting a statement through, never of letting replicas differ.
func readsClock(s string, timeArg int) bool {
	depth, args, some, now := 0, 0, false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '(':
			depth++
			some = some || depth > 1
		case c == ')':
			if depth--; depth <= 0 {
				if some {
					args++
				}
				return now || args <= timeArg
			}
		case c == '\'' || c == '"':
			end := strings.IndexByte(s[i+1:], c)
			if end < 0 {
				return true
			}
			if depth == 1 && strings.EqualFold(s[i+1:i+1+end], "now") {
				now = true
			}
			some = true
			i += end + 1
		case c == ',' && depth == 1:
			args++
		case c == '-' && strings.HasPrefix(s[i:], "--"):
			end := strings.IndexByte(s[i:], '\n')
			if end < 0 {
				return true
			}
			i += end
		case c == '/' && strings.HasPrefix(s[i:], "/*"):
			end := strings.Index(s[i+2:], "*/")
			if end < 0 {
				return true
			}
			i += end + 3
		case c > ' ' && depth > 0:
			some = true
		}
	}
	return true
}
