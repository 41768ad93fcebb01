"""A thin, typed layer over llama.cpp. Only runner processes import it: ggml may abort."""
