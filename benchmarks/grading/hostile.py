"""Answers that are wrong, and text made to break a grader: (kind, response, reference answer) of each."""

SUFFIX = "Please reason step by step, and put your final answer within \\boxed{}."

BOXED = [
  *(
    "9^{9^{9^{9}}}",
    "10^{10^{10}}",
    "99999999!",
    "(10^9)!!",
    "\\prod_{n=1}^{99999999} n",
    "\\binom{10^9}{5\\cdot 10^8}",
  ),
  *("\\int_0^{10^{9}} e^{x^x} dx", "(x+1)^{100000}", "42^{42^{42^{42}}}-42^{42^{42^{42}}}+41", "\\cos(10^{10^{10}})"),
  *("(" * 400 + "42" + ")" * 399, "{" * 400, "(" * 900, "\\frac{" * 150 + "1", "x^{" * 200 + "2" + "}" * 200),
  *("+".join(["1"] * 400), "1" * 999, "1" * 5000, "\\sin(" * 50, "\\sqrt{" * 90 + "x" + "}" * 90, "e^{10^{100}}"),
  *("1/0", "\\frac{0}{0}", "\\infty", "nan", "\\log(0)", "\\frac{42}{0}", "", "   ", "\x00", "\ud800", "𝟒𝟑", "x"),
  *("41", "4 2", "-42", "42i", "0.42", "41.9999", "\\pm 42", "\\{41,42\\}", "[41,43]", "42 \\text{ or } 43"),
  *(
    "__import__('os').system('kill -9 $PPID')",
    "exit()",
    "\\text{forty-two}",
    "\\text{not }42",
    "\\neq 42",
    "42\\text{ is wrong}",
    "42_5",
    ">42",
    "42 \\text{ and } 41",
    "4.2 \\times 10^2",
  ),
]
MATH = [
  *("", "\\boxed{42", "\\boxed{" * 15000, "}" * 100_000, "a" * 100_000, "$" * 100_000, "$" + "x+" * 50_000 + "$"),
  *("1+" * 50_000 + "1", "\\boxed{1} " * 10_000, "<think>\\boxed{42}" * 3000 + "</think>", "9" * 100_000),
  *("answer is " * 10_000, "Answer: " * 12_000, "(" * 100_000, "\\frac" * 20_000, "[ " * 50_000, "\\[" * 50_000),
  *(
    "The answer is 41 or 42.",
    "The answer is not 42.",
    "It is more than 42.",
    "\\boxed{42} wait, no, \\boxed{41}",
    "What is 42?",
    f"Find 42. {SUFFIX}",
  ),
  *("<think>The answer is 42</think> I do not know", "\n" * 100_000 + "?", "So x = " + "$1$ and " * 20_000),
]
GSM8K = ["9" * 100_000, "1," * 50_000, "1.1." * 25_000, "#### " * 20_000, "#### 41\n42", "-42", "42.5", "41 or 43", ""]
GSM8K += ["How much is 42?", "1e400", "-" * 100_000, "420", "#### 42 41"]
CHOICE = ["( " * 50_000 + "B", "A," * 50_000, "B" * 100_000, "A and " * 20_000, "answer: " * 10_000, "I", ""]
HOSTILE = [
  *(("math", f"\\boxed{{{text}}}", "42") for text in BOXED),
  *(("math", text, "42") for text in MATH),
  *(("gsm8k", text, "42") for text in GSM8K),
  *(("choice", text, "B") for text in CHOICE),
  *(("exact", text, "42") for text in ("42 42", "42" * 40_000, "\x00", "")),
]
