package main

import (
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestUnusedConnectionsDoNotHoldUpAStop has connections on which nothing was asked, as HTTP
// clients open them in reserve: a node ends in good order and at once.
func TestUnusedConnectionsDoNotHoldUpAStop(t *testing.T) {
	s, err := newSupervisor(filepath.Join(t.TempDir(), "data"), "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.stop() }()
	if err := s.startAll(); err != nil {
		t.Fatal(err)
	}
	for _, p := range s.nodes {
		conn, err := net.Dial("tcp", p.address())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if err := s.waitWell(recoverTimeout); err != nil { // which takes answers of each node's server
		t.Fatal(err)
	}
	began := time.Now()
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 3*time.Second { // of 5 a server that waits for them needs
		t.Errorf("the nodes ended after %v", took)
	}
}
