package colmena

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"
)

// Every default is stated in its field's comment as the constant has it.
func TestCommentsStateTheDefaults(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "config.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	docs := map[string]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok || spec.Name.Name != "Config" {
			return true
		}
		doc := ""
		for _, field := range spec.Type.(*ast.StructType).Fields.List {
			if field.Doc != nil {
				doc = strings.Join(strings.Fields(field.Doc.Text()), " ")
			}
			for _, name := range field.Names {
				docs[name.Name] = doc
			}
		}
		return false
	})
	for field, want := range map[string]string{
		"LeaderWait":       fmt.Sprintf("Default %d s", DefaultLeaderWait/1e9),
		"ApplyTimeout":     fmt.Sprintf("Default %d s", DefaultApplyTimeout/1e9),
		"BatchWindow":      fmt.Sprintf("Default %d ms", DefaultBatchWindow/1e6),
		"BatchMaxSize":     fmt.Sprintf("Default %d", DefaultBatchMaxSize),
		"HeartbeatTimeout": fmt.Sprintf("Defaults %d ms and %d ms", DefaultHeartbeatTimeout/1e6, DefaultElectionTimeout/1e6),
		"SnapshotInterval": fmt.Sprintf("Defaults %d s and %d entries", DefaultSnapshotInterval/1e9, DefaultSnapshotThreshold),
		"MaxStatementTime": fmt.Sprintf("Default %d s", DefaultMaxStatementTime/1e9),
		"MaxResultBytes":   fmt.Sprintf("Default %d MiB, at most %d MiB", DefaultMaxResultBytes>>20, maxResultBytes>>20),
		"MaxConns":         fmt.Sprintf("Default %d", DefaultMaxConns),
		"Consistency":      "Default " + Weak.String(),
		"NonDeterministic": "Default Reject",
		"JoinAs":           "Default JoinAsVoter",
		"ReadConns":        "Default GOMAXPROCS, at least 2",
	} {
		if doc, ok := docs[field]; !ok || !strings.Contains(doc, want) {
			t.Errorf("Config.%s: the comment does not say %q: %s", field, want, doc)
		}
	}
}

func TestConfigReportsEveryViolationAtOnce(t *testing.T) {
	c := Config{NodeID: "a b", Bind: "nowhere", Join: []string{"x"}, ClusterKeys: []string{"short"}, AllowPlain: true, BatchMaxSize: -1, Consistency: 9, MaxResultBytes: 32<<20 + 1}.withDefaults()
	err := c.check()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"DataDir", "NodeID", "Bind", "Join[0]", "ClusterKeys[0]", "AllowPlain", "BatchMaxSize", "Consistency", "MaxResultBytes"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not mentioned: %v", want, err)
		}
	}
}
