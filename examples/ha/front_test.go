package main

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// TestOtherWebSitesAreKeptOut sends what a page of another origin, or a name that was made
// to lead here, could make a browser send.
func TestOtherWebSitesAreKeptOut(t *testing.T) {
	s := supervisorOf(&process{flags: nodeFlags{ID: "node-1"}}, &process{flags: nodeFlags{ID: "node-2"}})
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

func TestQuestionsOfOtherSitesAreRefused(t *testing.T) {
	s := supervisorOf(answering(t, "node-1"))
	for _, tt := range []struct {
		path, site, mode, dest string
		want                   int
	}{
		{"/node/node-1/ledger", "same-origin", "cors", "empty", http.StatusOK},
		{"/node/node-1/ledger", "none", "navigate", "document", http.StatusOK},
		{"/node/node-1/ledger", "", "", "", http.StatusOK}, // no browser
		{"/node/node-1/ledger", "cross-site", "no-cors", "script", http.StatusForbidden},
		{"/node/node-1/events", "same-site", "cors", "empty", http.StatusForbidden},
		{"/node/node-1/content", "cross-site", "navigate", "document", http.StatusForbidden},
		{"/page.js", "cross-site", "no-cors", "script", http.StatusForbidden},
		{"/", "cross-site", "navigate", "document", http.StatusOK}, // a link that was followed
		{"/", "cross-site", "navigate", "iframe", http.StatusForbidden},
		{"/", "cross-site", "no-cors", "empty", http.StatusForbidden},
	} {
		r := httptest.NewRequest("GET", "http://127.0.0.1:8080"+tt.path, nil)
		for name, value := range map[string]string{"Sec-Fetch-Site": tt.site, "Sec-Fetch-Mode": tt.mode, "Sec-Fetch-Dest": tt.dest} {
			if value != "" {
				r.Header.Set(name, value)
			}
		}
		w := httptest.NewRecorder()
		s.handler().ServeHTTP(w, r)
		if w.Code != tt.want {
			t.Errorf("%+v: %d: %s", tt, w.Code, w.Body)
		}
	}
}

// TestPageComesFromANodeThatAnswers has a first node that accepts and says nothing, as one
// that was stopped from a terminal does.
func TestPageComesFromANodeThatAnswers(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	stopped := runningAt("node-1", silent.Addr().String())
	for _, path := range []string{"/", "/page.js", "/page.css"} {
		w := httptest.NewRecorder()
		began := time.Now()
		supervisorOf(stopped, answering(t, "node-2")).handler().ServeHTTP(w, httptest.NewRequest("GET", "http://127.0.0.1:8080"+path, nil))
		if took := time.Since(began); w.Code != http.StatusOK || w.Body.String() != "node-2 "+path || took > 5*pageTimeout {
			t.Errorf("%s: %d after %v: %s", path, w.Code, took, w.Body)
		}
		if got := w.Header().Get("Content-Type"); got != "text/x-test" {
			t.Errorf("%s: its type is %q", path, got)
		}
	}
	w := httptest.NewRecorder()
	supervisorOf(stopped).handler().ServeHTTP(w, httptest.NewRequest("GET", "http://127.0.0.1:8080/", nil))
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "no node of the demo answers") {
		t.Errorf("%d: %s", w.Code, w.Body)
	}
}

func supervisorOf(nodes ...*process) *supervisor {
	s := &supervisor{token: "secret", byID: map[string]*process{}, nodes: nodes}
	for _, p := range nodes {
		s.byID[p.flags.ID] = p
	}
	return s
}

// runningAt is a process of which the supervisor believes that it runs.
func runningAt(id, addr string) *process {
	return &process{flags: nodeFlags{ID: id}, ended: make(chan struct{}), http: addr}
}

// answering answers every request with its ID and the path.
func answering(t *testing.T, id string) *process {
	server := httptest.NewServer(withToken("secret", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/x-test")
		_, _ = io.WriteString(w, id+" "+r.URL.Path)
	})))
	t.Cleanup(server.Close)
	return runningAt(id, server.Listener.Addr().String())
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
