"""How often the graders are right: reference answers in the forms that models give them, and what must not count.

forms.py      ways in which a model writes an answer that it got right
hostile.py    wrong answers, and text that is made to break a grader
python -m benchmarks.grading --data=FOLDER --out=benchmarks/results/grading
"""
