package main

import (
	"context"
	"time"
)

type headless struct {
	say      func(string, ...any)
	duration time.Duration
	chaos    bool
	seed     uint64
}

func runHeadless(ctx context.Context, s *supervisor, h headless) error {
	return nil
}
