package pragma

import (
	"strconv"
	"strings"

	"github.com/mentasystems/colmena/internal/sqltext"
)

// sqliteInt reads the integer that a value begins with, 0 if there is none or it does
// not fit.
func sqliteInt(s string) int64 {
	if sqltext.IsHex(s) {
		v, _ := strconv.ParseInt(s[2:], 16, 64)
		return v
	}
	n := 0
	for n < len(s) && (digit(s[n]) || n == 0 && (s[0] == '-' || s[0] == '+')) {
		n++
	}
	v, err := strconv.ParseInt(s[:n], 10, 64)
	if err != nil {
		return 0
	}
	return v
}

// sqliteBool is SQLite's reading of a switch: what it does not know is off.
func sqliteBool(s string) bool {
	if s != "" && digit(s[0]) {
		return sqliteInt(s) != 0
	}
	switch strings.ToLower(s) {
	case "on", "yes", "true":
		return true
	}
	return false
}

// isBool reports whether a value says clearly what a switch is to be.
func isBool(s string) bool {
	switch strings.ToLower(s) {
	case "on", "yes", "true", "off", "no", "false":
		return true
	}
	return s != "" && digit(s[0])
}

func syncLevel(s string) int64 {
	if s != "" && digit(s[0]) {
		return max(1, (sqliteInt(s)+1)&7) - 1
	}
	switch strings.ToLower(s) {
	case "off", "no", "false":
		return 0
	case "full":
		return 2
	case "extra":
		return 3
	}
	return 1
}

func tempStore(s string) int64 {
	switch {
	case strings.EqualFold(s, "file") || strings.HasPrefix(s, "1"):
		return 1
	case strings.EqualFold(s, "memory") || strings.HasPrefix(s, "2"):
		return 2
	}
	return 0
}

func digit(c byte) bool { return '0' <= c && c <= '9' }
