// Package up holds what the guest's init and the runner outside agree on.
package up

// Line is what the guest's init says first.
const Line = "bench: the guest's init is up"
