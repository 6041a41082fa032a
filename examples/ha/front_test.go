package main

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestOtherWebSitesAreKeptOut sends what a page of another origin, or a name that was made
// to lead here, could make a browser send.
func TestOtherWebSitesAreKeptOut(t *testing.T) {
	s := &supervisor{token: "secret", byID: map[string]*process{}}
	for _, id := range []string{"node-1", "node-2"} {
		p := &process{flags: nodeFlags{ID: id}}
		s.nodes, s.byID[id] = append(s.nodes, p), p
	}
	for _, tt := range []struct {
		what, method, path, host, origin, token string
		want                                    int
	}{
		{"the page's own action", "POST", "/node/node-1/do/kill", "127.0.0.1:8080", "http://127.0.0.1:8080", "secret", http.StatusConflict}, // it does not run
		{"through a forwarded port", "POST", "/node/node-1/do/kill", "localhost:9000", "http://localhost:9000", "secret", http.StatusConflict},
		{"no such node", "POST", "/node/x/do/kill", "127.0.0.1:8080", "http://127.0.0.1:8080", "secret", http.StatusNotFound},
		{"no such action", "POST", "/node/node-1/do/x", "127.0.0.1:8080", "http://127.0.0.1:8080", "secret", http.StatusNotFound},
		{"another origin", "POST", "/node/node-1/do/kill", "127.0.0.1:8080", "https://evil.example", "secret", http.StatusForbidden},
		{"another port", "POST", "/node/node-1/do/kill", "127.0.0.1:8080", "http://127.0.0.1:3000", "secret", http.StatusForbidden},
		{"an opaque origin", "POST", "/node/node-1/do/kill", "127.0.0.1:8080", "null", "secret", http.StatusForbidden},
		{"without a token", "POST", "/node/node-1/do/kill", "127.0.0.1:8080", "", "", http.StatusForbidden},
		{"a wrong token", "POST", "/node/node-1/do/kill", "127.0.0.1:8080", "http://127.0.0.1:8080", "guess", http.StatusForbidden},
		{"a write without a token", "POST", "/node/node-1/write", "127.0.0.1:8080", "http://127.0.0.1:8080", "", http.StatusForbidden},
		{"a name that leads here", "GET", "/", "evil.example:8080", "", "", http.StatusForbidden},
		{"such a name with a token", "POST", "/node/node-1/do/kill", "evil.example", "http://evil.example", "secret", http.StatusForbidden},
		{"what nodes ask, by a page", "GET", "/facts", "127.0.0.1:8080", "", "", http.StatusForbidden},
		{"the page", "GET", "/", "127.0.0.1:8080", "", "", http.StatusServiceUnavailable}, // no node runs
	} {
		r := httptest.NewRequest(tt.method, "http://"+tt.host+tt.path, nil)
		if tt.origin != "" {
			r.Header.Set("Origin", tt.origin)
		}
		if tt.token != "" {
			r.Header.Set(tokenHeader, tt.token)
		}
		w := httptest.NewRecorder()
		s.handler().ServeHTTP(w, r)
		if w.Code != tt.want {
			t.Errorf("%s: %d, want %d: %s", tt.what, w.Code, tt.want, w.Body)
		}
	}
}

func TestPageIsServedOnLoopbackOnly(t *testing.T) {
	first, err := listenForPage("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer first.close()
	for addr, want := range map[string]string{
		"0.0.0.0:0": "loopback only", ":0": "loopback only", "example.com:80": "loopback only", "nowhere": "not host:port",
		strings.TrimPrefix(first.url(), "http://"): "choose another port with -listen",
	} {
		l, err := listenForPage(addr)
		if err == nil {
			l.close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", addr, err, want)
		}
	}
}
