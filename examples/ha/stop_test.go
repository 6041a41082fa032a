package main

import (
	"net"
	"testing"
	"time"
)

// TestUnusedConnectionsDoNotHoldUpAStop has connections on which nothing was asked, as HTTP
// clients open them in reserve: a node ends in good order and at once.
func TestUnusedConnectionsDoNotHoldUpAStop(t *testing.T) {
	s := startNodes(t)
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
