package pragma

// heldPragmas are switches that only have the value they hold.
var heldPragmas = map[string]bool{
	"ignore_check_constraints": false, "legacy_alter_table": false, "writable_schema": false,
	"read_uncommitted": false, "reverse_unordered_selects": false, "cell_size_check": false, "fullfsync": false,
	"checkpoint_fullfsync": false, "automatic_index": true,
}

// remembered is a setting that a connection keeps and gives back, and that has no
// effect: the engine has its own way of waiting, caching and syncing.
type remembered struct {
	column  string
	initial int64
	echoes  bool // setting it returns the new value
	parse   func(string) int64
}

func atLeast(low int64, parse func(string) int64) func(string) int64 {
	return func(s string) int64 { return max(low, parse(s)) }
}

var rememberedPragmas = map[string]remembered{
	"busy_timeout":       {"timeout", 0, true, atLeast(0, sqliteInt)},
	"cache_size":         {"cache_size", -2000, false, sqliteInt},
	"synchronous":        {"synchronous", 2, false, syncLevel},
	"temp_store":         {"temp_store", 0, false, tempStore},
	"mmap_size":          {"mmap_size", 0, true, atLeast(0, sqliteInt)},
	"wal_autocheckpoint": {"wal_autocheckpoint", 1000, true, atLeast(0, sqliteInt)},
	"journal_size_limit": {"journal_size_limit", -1, true, atLeast(-1, sqliteInt)},
	"analysis_limit":     {"analysis_limit", 0, true, atLeast(0, sqliteInt)},
}

// fixedPragmas are settings of the file, with the names of what they are.
var fixedPragmas = map[string][]string{
	"encoding": {"utf-8", "utf8"}, "page_size": {"4096"}, "auto_vacuum": {"0", "none", "off"},
}
