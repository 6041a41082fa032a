package main

import "slices"

// ranges joins numbers, in any order, to ranges of which both ends are included.
func ranges(numbers []int64) [][2]int64 {
	list := [][2]int64{}
	slices.Sort(numbers)
	for _, n := range numbers {
		if last := len(list) - 1; last >= 0 && n <= list[last][1]+1 {
			list[last][1] = n
			continue
		}
		list = append(list, [2]int64{n, n})
	}
	return list
}
