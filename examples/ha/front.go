package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"
)

// pageListener is the address at which a browser finds the demo.
type pageListener struct{ listener net.Listener }

// listenForPage refuses addresses that others can reach: the page kills processes.
func listenForPage(addr string) (*pageListener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("-listen %q is not host:port: %w", addr, err)
	}
	if !isLoopback(host) {
		return nil, fmt.Errorf("-listen %s: the page stops and kills the demo's processes, so it is served on loopback only: take 127.0.0.1 and a port", addr)
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("the page cannot be served at %s: %w; choose another port with -listen 127.0.0.1:PORT, or a free one with -listen 127.0.0.1:0", addr, err)
	}
	return &pageListener{l}, nil
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// url has no slash at its end. Without a page it is "".
func (p *pageListener) url() string {
	if p == nil {
		return ""
	}
	return "http://" + p.listener.Addr().String()
}

func (p *pageListener) close() { _ = p.listener.Close() }

// serve answers until ctx ends.
func (p *pageListener) serve(ctx context.Context, s *supervisor) error {
	server := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(p.listener) }()
	select {
	case <-ctx.Done():
		return server.Close()
	case err := <-ended:
		return err
	}
}

// handler is what the supervisor answers: it carries requests to nodes, and does to them
// what the page's buttons say.
func (s *supervisor) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.servePage)
	mux.HandleFunc("GET /page.css", s.servePage)
	mux.HandleFunc("GET /page.js", s.servePage)
	mux.Handle("GET /facts", withToken(s.token, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, s.facts()) })))
	mux.HandleFunc("/node/{id}/{path}", func(w http.ResponseWriter, r *http.Request) {
		p := s.byID[r.PathValue("id")]
		if p == nil {
			http.NotFound(w, r)
			return
		}
		http.StripPrefix("/node/"+p.flags.ID, s.proxy(p)).ServeHTTP(w, r)
	})
	mux.Handle("POST /node/{id}/do/{action}", withToken(s.token, http.HandlerFunc(s.serveAction)))
	return guard(s.token, mux)
}

// pageTimeout bounds the wait for one node's answer with the page. A node may stand still
// without the supervisor's knowledge, as who has a terminal can stop it.
const pageTimeout = time.Second

// servePage has the page from the first node that answers.
func (s *supervisor) servePage(w http.ResponseWriter, r *http.Request) {
	why := "no node of the demo runs: start it again"
	for _, p := range s.nodes {
		if state, _ := p.state(); state != stateRunning || p.address() == "" {
			continue
		}
		header, body, err := s.pageOf(r.Context(), p, r.URL.Path)
		if err != nil {
			why = "no node of the demo answers: " + err.Error()
			continue
		}
		for _, name := range []string{"Content-Type", "Cache-Control"} {
			if v := header.Get(name); v != "" {
				w.Header().Set(name, v)
			}
		}
		_, _ = w.Write(body) // whoever asked is gone
		return
	}
	http.Error(w, why, http.StatusServiceUnavailable)
}

func (s *supervisor) pageOf(ctx context.Context, p *process, path string) (http.Header, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.address()+path, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set(tokenHeader, s.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answered %s", p.flags.ID, resp.Status)
	}
	return resp.Header, body, err
}

func (s *supervisor) serveAction(w http.ResponseWriter, r *http.Request) {
	err := s.do(r.PathValue("id"), action(r.PathValue("action")))
	switch {
	case errors.Is(err, errUnknown):
		answer(w, http.StatusNotFound, map[string]string{"error": err.Error()})
	case err != nil:
		answer(w, http.StatusConflict, map[string]string{"error": err.Error()})
	default:
		answer(w, http.StatusOK, s.facts())
	}
}

// guard keeps other web sites out, which the same browser may have open: the name that was
// asked for must be a loopback one, so that no other name can be made to lead here, and what
// changes something must come from the page itself and bring its token. Questions need no
// token, so what a browser sends for another site is refused, but for a link to the page.
func guard(token string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, err := url.Parse("http://" + r.Host)
		if err != nil || !isLoopback(u.Hostname()) {
			http.Error(w, "this demo is reached by the name localhost or 127.0.0.1 only", http.StatusForbidden)
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" && origin != "http://"+r.Host {
			http.Error(w, "this demo answers its own page only", http.StatusForbidden)
			return
		}
		if site := r.Header.Get("Sec-Fetch-Site"); (site == "cross-site" || site == "same-site") && !opensPage(r) {
			http.Error(w, "this demo answers its own page only", http.StatusForbidden)
			return
		}
		if r.Method != http.MethodGet && !hasToken(r, token) {
			http.Error(w, "the page is of an earlier run: load it again", http.StatusForbidden)
			return
		}
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		next.ServeHTTP(w, r)
	})
}

// opensPage tells whether a browser shows the answer to its user, in a tab of its own, and to
// no other page.
func opensPage(r *http.Request) bool {
	return r.Method == http.MethodGet && r.URL.Path == "/" && r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
}

// proxy carries a request to a node. Its errors say whether the node may have got it.
func (s *supervisor) proxy(p *process) http.Handler {
	fail := func(w http.ResponseWriter, o outcome, what string) {
		answer(w, http.StatusBadGateway, writeAnswer{Outcome: o, Node: p.flags.ID, Error: p.flags.ID + " " + what})
	}
	address := p.address()
	if address == "" {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fail(w, notApplied, "does not run") })
	}
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", address
			r.Out.Header.Set(tokenHeader, s.token)
		},
		FlushInterval: -1,                                        // a stream's events are passed on at once
		ErrorLog:      slog.NewLogLogger(slog.DiscardHandler, 0), // the page is told
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" {
				fail(w, notApplied, "does not run")
				return
			}
			fail(w, unknown, "ended before it answered")
		},
	}
}
