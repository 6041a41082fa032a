package rpc

import (
	"context"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

func BenchmarkCall(b *testing.B) {
	c := benchPair(b)
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	req := make([]byte, 100)
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		if _, err := c.Call(ctx, "n", "echo", req); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	reportP50(b, took)
}

func BenchmarkPingPong(b *testing.B) {
	c := benchPair(b)
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	st, err := c.Open(ctx, "n", "pingpong")
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	req, buf := make([]byte, 100), make([]byte, 200)
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		if err := st.Send(req); err != nil {
			b.Fatal(err)
		}
		if _, err := st.RecvInto(buf); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	reportP50(b, took)
}

func reportP50(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-us")
}

func benchPair(b *testing.B) *Client {
	srv := NewServer(ServerConfig{})
	srv.Handle("echo", func(_ context.Context, _ wire.Hello, st *Stream) error {
		m, err := st.Recv()
		if err != nil {
			return err
		}
		return st.Send(m)
	})
	srv.Handle("pingpong", func(_ context.Context, _ wire.Hello, st *Stream) error {
		buf := make([]byte, 200)
		for {
			m, err := st.RecvInto(buf)
			if err != nil {
				return nil
			}
			if err := st.Send(m); err != nil {
				return err
			}
		}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go srv.ServeConn(conn, wire.Hello{NodeID: "client"})
		}
	}()
	c := NewClient(ClientConfig{Dial: func(ctx context.Context, _ string) (net.Conn, wire.Hello, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", l.Addr().String())
		return conn, wire.Hello{NodeID: "n"}, err
	}})
	b.Cleanup(func() { c.Close(); l.Close(); srv.Close() })
	return c
}

// BenchmarkRawTCP is the floor: the same exchange without anything between.
func BenchmarkRawTCP(b *testing.B) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		buf := make([]byte, 200)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			conn.Write(buf[:n])
		}
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	req, buf := make([]byte, 100), make([]byte, 200)
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		conn.Write(req)
		conn.Read(buf)
		took = append(took, time.Since(start))
	}
	reportP50(b, took)
}
