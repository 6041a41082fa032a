//go:build race

package colmenatest

const raceDetector = true
