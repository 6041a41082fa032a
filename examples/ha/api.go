package main

import (
	"context"
	"crypto/subtle"
	"embed"
	"encoding/json"
	"html/template"
	"log/slog"
	"net/http"
	"time"
)

// pageFiles are the page: it needs nothing else, from anywhere.
//
//go:embed page
var pageFiles embed.FS

var pageTemplate = template.Must(template.ParseFS(pageFiles, "page/index.html"))

// tokenHeader carries the token that the supervisor drew. Only who has it is answered: a
// page of another origin in the same browser does not.
const tokenHeader = "X-Demo-Token"

// handler is what a node answers over HTTP.
func (a *application) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", a.servePage)
	mux.HandleFunc("GET /page.css", func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, pageFiles, "page/page.css") })
	mux.HandleFunc("GET /page.js", func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, pageFiles, "page/page.js") })
	mux.HandleFunc("POST /write", a.serveWrite)
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) { answer(w, http.StatusOK, a.status(r.Context())) })
	mux.HandleFunc("GET /events", a.serveEvents)
	mux.HandleFunc("GET /ledger", a.serveLedger)
	mux.HandleFunc("GET /content", a.serveContent)
	return withToken(a.flags.Token, mux)
}

// withToken refuses requests without the token.
func withToken(token string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !hasToken(r, token) {
			http.Error(w, "this demo answers its own page only", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func hasToken(r *http.Request, token string) bool {
	return subtle.ConstantTimeCompare([]byte(r.Header.Get(tokenHeader)), []byte(token)) == 1
}

// answer writes a value as JSON.
func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // whoever asked is gone
}

// answerError says that a question could not be answered here and now.
func answerError(w http.ResponseWriter, err error) {
	answer(w, http.StatusServiceUnavailable, map[string]string{"error": err.Error()})
}

func (a *application) servePage(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	err := pageTemplate.Execute(w, map[string]any{"Token": a.flags.Token, "Node": a.flags.ID, "Nodes": a.flags.Nodes, "CanPause": canPause, "Run": a.flags.Run})
	if err != nil {
		slog.Warn("the page was not sent whole", "err", err)
	}
}

// writeAnswer is what a client is told of its write.
type writeAnswer struct {
	Outcome outcome `json:"outcome"`
	Seq     int64   `json:"seq,omitempty"`
	Node    string  `json:"node"`
	Error   string  `json:"error,omitempty"`
}

func (a *application) serveWrite(w http.ResponseWriter, r *http.Request) {
	var e event
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, eventBytesMax)).Decode(&e); err != nil {
		answer(w, http.StatusBadRequest, writeAnswer{Outcome: notApplied, Node: a.flags.ID, Error: err.Error()})
		return
	}
	// A client that has gone away has its answer already: unknown. The write still ends in
	// its own time, as its context does.
	seq, o, err := a.write(context.WithoutCancel(r.Context()), e)
	out, status := writeAnswer{Outcome: o, Seq: seq, Node: a.flags.ID}, http.StatusOK
	if err != nil {
		out.Error, status = err.Error(), http.StatusServiceUnavailable
	}
	answer(w, status, out)
}

// eventBytesMax bounds a write's request.
const eventBytesMax = 4 << 10

// nodeStatus is what a node says of itself.
type nodeStatus struct {
	ID       string `json:"id"`
	Cluster  string `json:"cluster"`
	Role     string `json:"role"` // leader, follower, candidate, learner
	Ready    bool   `json:"ready"`
	Term     uint64 `json:"term"`
	Leader   string `json:"leader"`
	Applied  uint64 `json:"applied"`
	Rows     int64  `json:"rows"`
	UptimeMS int64  `json:"uptime"`
	Halted   string `json:"halted,omitempty"`
}

// roleLearner is colmena's name for the role of a follower that has no vote.
const roleLearner = "learner"

// status asks no other node.
func (a *application) status(ctx context.Context) nodeStatus {
	s := a.node.Status()
	out := nodeStatus{
		ID: s.NodeID, Cluster: s.ClusterID, Role: s.Role, Ready: s.Ready, Term: s.Term, Leader: s.Leader, Applied: s.AppliedIndex,
		UptimeMS: time.Since(a.began).Milliseconds(),
	}
	if s.Halted != nil {
		out.Halted = s.Halted.Error()
	}
	out.Rows = a.count(ctx)
	return out
}
