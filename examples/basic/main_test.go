package main

import (
	"os"
	"strings"
	"testing"
)

// TestReadmeShowsThisProgram holds the README's first program and this one equal.
func TestReadmeShowsThisProgram(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	_, code, ok := strings.Cut(string(readme), "```go\n")
	code, _, closed := strings.Cut(code, "```")
	_, body, ok2 := strings.Cut(string(program), "package main\n")
	if !ok || !closed || !ok2 || code != "package main\n"+body {
		t.Errorf("the README's first program is not main.go:\n%s", code)
	}
}

// TestProgramRunsAgain runs it as often as a reader would.
func TestProgramRunsAgain(t *testing.T) {
	t.Chdir(t.TempDir())
	out, err := os.Create("out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	stdout := os.Stdout
	os.Stdout = out
	defer func() { os.Stdout = stdout }()
	main()
	main()
	text, err := os.ReadFile("out")
	if err != nil || !strings.Contains(string(text), "inserted row 1; the table in ./data now has 1\n") || !strings.Contains(string(text), "inserted row 2; the table in ./data now has 2\n") {
		t.Errorf("it printed %q, %v", text, err)
	}
}
